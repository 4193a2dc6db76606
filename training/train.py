"""Train the embedded model: `python -m training.train --out run --minutes 80` (or `--steps 3000`).

A run folder holds tokenizer.json, config.json and checkpoint.npz; a restarted run continues from them. With `--steps`
the result is a function of the seed; with `--minutes` the schedule follows the time spent, at any speed of the machine,
so that the decay ends in time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tokenizers import Tokenizer

from model.config.mpt_config import MptConfig
from model.params.weights import Weights, init_weights
from training import checkpoint, muon, native_step, schedule
from training.architecture import config_dict
from training.checkpoint import Progress
from training.export import read_model
from training.packing import batch_at
from training.tokenizer import train_tokenizer
from training.train_step import Step, data_mesh, make_step

CHECKPOINT = "checkpoint.npz"
_TOKENIZER_DOCUMENTS = 40_000
_LOG_EVERY = 10


@dataclass(frozen=True)
class Options:
    """Options of a run: `minutes` or `steps` bounds it; `stop_after` interrupts it early, as a crash would.

    start: a model folder whose weights, config and tokenizer the run begins with, after the copying phase.
    """

    out: Path
    seed: int = 0
    minutes: float | None = None
    steps: int | None = None
    start: Path | None = None
    save_every: float = 600.0  # seconds
    stop_after: int | None = None

    def fraction(self, progress: Progress) -> float:
        """Return progress from 0 to 1."""
        if self.steps is not None:
            return progress.step / self.steps
        return progress.seconds / (60 * (self.minutes or 1))


def load_tokenizer(out: Path, seed: int) -> Tokenizer:
    """Return the run's tokenizer; trained and saved when there is none yet."""
    path = out / "tokenizer.json"
    if not path.exists():
        train_tokenizer(seed, _TOKENIZER_DOCUMENTS).save(str(path))
    return Tokenizer.from_file(str(path))


def load_config(out: Path) -> MptConfig:
    """Return the run's config.json; the default architecture when there is none yet."""
    path = out / "config.json"
    if not path.exists():
        path.write_text(json.dumps(config_dict(), indent=2) + "\n")
    return MptConfig.from_file(path)


def first_weights(options: Options, config: MptConfig) -> Weights:
    """Return the weights that a run begins with, float32: those of `start`, or random ones of the seed."""
    if options.start is not None:
        weights, _, _ = read_model(options.start)
        return weights
    return jax.jit(lambda key: init_weights(config, key, jnp.float32))(jax.random.key(options.seed))


def choose_step(
    config: MptConfig, weights: Weights, state: muon.OptimizerState
) -> tuple[Step, tuple[Weights, muon.OptimizerState]]:
    """Return the native step where it can run, else the compiled one; and the state where the step changes it."""
    if native_step.usable(config, schedule.LENGTH):
        native = native_step.NativeStep(config, schedule.LENGTH, len(os.sched_getaffinity(0)))
        return native, jax.tree.map(np.array, (weights, state))
    mesh = data_mesh()
    return make_step(config, mesh), jax.device_put((weights, state), NamedSharding(mesh, PartitionSpec()))


def train(options: Options) -> Weights:
    """Run to the end (or to `stop_after`), saving checkpoints on the way; return the weights, float32."""
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "config.json"):
        if options.start is not None and not (options.out / name).exists():
            shutil.copyfile(options.start / name, options.out / name)
    tokenizer, config = load_tokenizer(options.out, options.seed), load_config(options.out)
    weights = first_weights(options, config)
    state, progress = muon.init_state(weights), Progress()
    path = options.out / CHECKPOINT
    if path.exists():
        weights, state, progress = checkpoint.restore(path, weights, state)
        _log(f"resumed at step {progress.step}, {progress.tokens:,} tokens, {progress.seconds:.0f} s")
    step, (weights, state) = choose_step(config, weights, state)
    copy_until = schedule.COPY_UNTIL if options.start is None else 0.0
    saved = clock = time.monotonic()
    logged, losses = progress, list[float]()
    while options.fraction(progress) < 1 and progress.step != options.stop_after:
        stage = schedule.stage_at(options.fraction(progress), progress.step, copy_until)
        batch = batch_at(progress.step, options.seed, tokenizer, schedule.ROWS, schedule.LENGTH, stage.copy_phase)
        weights, state, loss = step(weights, state, batch.tokens, batch.weights, np.float32(stage.rate))
        losses.append(float(loss))  # waits for the step, so that the time is the step's
        now = time.monotonic()
        progress = Progress(progress.step + 1, progress.tokens + batch.count, progress.seconds + now - clock)
        clock = now
        if progress.step % _LOG_EVERY == 0:
            speed = (progress.tokens - logged.tokens) / (progress.seconds - logged.seconds)
            _log(
                f"step {progress.step} progress {options.fraction(progress):.3f} loss {np.mean(losses):.4f} "
                f"rate {stage.rate:.3f} tokens {progress.tokens:,} ({speed:.0f}/s)"
            )
            logged, losses = progress, []
        if now - saved > options.save_every:
            checkpoint.save(path, weights, state, progress)
            saved = now
    checkpoint.save(path, weights, state, progress)
    _log(f"stopped at step {progress.step}, {progress.tokens:,} tokens, {progress.seconds:.0f} s")
    return weights


def _log(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def main() -> None:
    """Run the command line entry point."""
    parser = argparse.ArgumentParser(description="Train the embedded demonstration model.")
    parser.add_argument("--out", type=Path, required=True, help="run folder; an interrupted run in it is continued")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="model folder to begin with, e.g. mpt_serve/embedded")
    parser.add_argument("--save-every", type=float, default=600.0, help="seconds between checkpoints")
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--minutes", type=float, help="wall-clock budget that the schedule is scaled to")
    bound.add_argument("--steps", type=int, help="number of optimiser steps")
    arguments = parser.parse_args()
    # Read when JAX starts its CPU client: one device per core trains faster than one device with two threads.
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={min(2, len(os.sched_getaffinity(0)))}")
    train(Options(**vars(arguments)))


if __name__ == "__main__":
    main()
