"""Train the embedded model: `python -m training.train --out run --minutes 80` (or `--steps 3000`).

A run folder holds tokenizer.json, config.json and checkpoint.npz; a restarted run continues from them. With `--steps`
the result is a function of the seed; with `--minutes` the schedule follows the time spent, at any speed of the machine,
so that the decay ends in time.
"""

from __future__ import annotations

import argparse
import json
import os
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
from training import checkpoint, muon, schedule
from training.architecture import config_dict
from training.checkpoint import Progress
from training.packing import batch_at
from training.tokenizer import train_tokenizer
from training.train_step import data_mesh, make_step

CHECKPOINT = "checkpoint.npz"
_TOKENIZER_DOCUMENTS = 40_000
_LOG_EVERY = 10


@dataclass(frozen=True)
class Options:
    """Options of a run: `minutes` or `steps` bounds it; `stop_after` interrupts it early, as a crash would."""

    out: Path
    seed: int = 0
    minutes: float | None = None
    steps: int | None = None
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


def train(options: Options) -> Weights:
    """Run to the end (or to `stop_after`), saving checkpoints on the way; return the weights, float32."""
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer, config = load_tokenizer(options.out, options.seed), load_config(options.out)
    mesh = data_mesh()
    weights = jax.jit(lambda key: init_weights(config, key, jnp.float32))(jax.random.key(options.seed))
    state, progress = muon.init_state(weights), Progress()
    path = options.out / CHECKPOINT
    if path.exists():
        weights, state, progress = checkpoint.restore(path, weights, state)
        _log(f"resumed at step {progress.step}, {progress.tokens:,} tokens, {progress.seconds:.0f} s")
    weights, state = jax.device_put((weights, state), NamedSharding(mesh, PartitionSpec()))
    step = make_step(config, mesh)
    saved = clock = time.monotonic()
    while options.fraction(progress) < 1 and progress.step != options.stop_after:
        stage = schedule.stage_at(options.fraction(progress), progress.step)
        batch = batch_at(progress.step, options.seed, tokenizer, schedule.ROWS, schedule.LENGTH, stage.copy_phase)
        weights, state, loss = step(weights, state, batch.tokens, batch.weights, np.float32(stage.rate))
        value = float(loss)  # waits for the step, so that the time is the step's
        now = time.monotonic()
        progress = Progress(progress.step + 1, progress.tokens + batch.count, progress.seconds + now - clock)
        clock = now
        if progress.step % _LOG_EVERY == 0:
            share, speed = options.fraction(progress), progress.tokens / progress.seconds
            _log(
                f"step {progress.step} progress {share:.3f} loss {value:.4f} rate {stage.rate:.3f} "
                f"tokens {progress.tokens:,} ({speed:.0f}/s)"
            )
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
    parser.add_argument("--save-every", type=float, default=600.0, help="seconds between checkpoints")
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--minutes", type=float, help="wall-clock budget that the schedule is scaled to")
    bound.add_argument("--steps", type=int, help="number of optimiser steps")
    arguments = parser.parse_args()
    # Read when JAX starts its CPU client: one device per core trains faster than one device with two threads.
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={min(2, os.cpu_count() or 1)}")
    train(Options(**vars(arguments)))


if __name__ == "__main__":
    main()
