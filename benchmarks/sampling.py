"""Measure what sampling costs a step, for every kind of parameters, interleaved with greedy rows.

    python benchmarks/sampling.py [--rows 32] [--vocab 50432] [--spread 3] [--kernels auto] [--rounds 50]

A line per kind: median milliseconds of a step's sampling alone, and its median ratio to greedy in the same round. All
rows of a step are of one kind but for "mixed", where every row is of another one. Logits are normal random numbers of
standard deviation --spread: the lower it is, the more ids share the probability, and the more a filter has to do.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.kernel_selection import sampling_kernels
from model.params.sampling_batch import SamplingBatch
from model.sampling.batch import PROMPT, SamplerState
from model.sampling.sampler import sample
from mpt_serve.engine.sampling_params import MAX_LOGPROBS

GREEDY: dict[str, Any] = {
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "presence": 0.0, "frequency": 0.0,
    "biased": False, "masked": False, "num_logprobs": -1,
}  # fmt: skip
FILTERS: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02}
CHANGES: dict[str, Any] = {"repetition": 1.1, "presence": 0.5, "frequency": 0.2, "biased": True, "masked": True}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 0.8, "top_k": 50},
    "top_p": {"temperature": 0.8, "top_p": 0.9},
    "min_p": {"temperature": 0.8, "min_p": 0.02},
    "all filters": FILTERS,
    "penalties": {"repetition": 1.1, "presence": 0.5, "frequency": 0.2},
    "logit_bias": {"biased": True},
    "mask": {"masked": True},
    "everything": {**FILTERS, **CHANGES},
    "greedy, 20 logprobs": {"num_logprobs": 20},
    "everything, 20 logprobs": {**FILTERS, **CHANGES, "num_logprobs": 20},
}
_DTYPES = {float: jnp.float32, int: jnp.int32, bool: jnp.bool_}


def batch_of(kinds: list[dict[str, Any]]) -> SamplingBatch:
    """Return one row of each kind; row r reads and writes slot r."""
    rows = [{**GREEDY, **kind} for kind in kinds]
    indices = jnp.arange(len(rows), dtype=jnp.int32)
    fields = {name: jnp.array([row[name] for row in rows], _DTYPES[type(value)]) for name, value in GREEDY.items()}
    return SamplingBatch(
        **fields,
        slot=indices,
        write_slot=indices,
        seed=jnp.zeros((len(rows), 2), jnp.uint32),
        choice_index=jnp.zeros_like(indices),
        position=indices,
    )


def inputs_of(rows: int, vocab: int, spread: float) -> tuple[Array, Array, SamplerState]:
    """Return logits, masks that allow a quarter of the ids, and a state with some ids seen and a few biased."""
    rng = np.random.default_rng(2026)
    logits = rng.normal(scale=spread, size=(rows, vocab)).astype(np.float32)
    words = (rows, -(-vocab // 32))
    masks = rng.integers(0, 2**32, words, dtype=np.uint32) & rng.integers(0, 2**32, words, dtype=np.uint32)
    counts, bias = np.zeros((rows, vocab), np.int32), np.zeros((rows, vocab), np.float32)
    for row in range(rows):
        counts[row, rng.integers(0, vocab, 1000)] = PROMPT
        counts[row, rng.integers(0, vocab, 200)] += 1
        bias[row, rng.integers(0, vocab, 20)] = 2.0
    return (
        jnp.asarray(logits),
        jnp.asarray(masks),
        SamplerState(jnp.zeros(rows, jnp.int32), *map(jnp.asarray, (counts, bias))),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=50_432)
    parser.add_argument("--spread", type=float, default=3.0)
    parser.add_argument("--kernels", choices=("auto", "xla"), default="auto")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    logits, masks, state = inputs_of(options.rows, options.vocab, options.spread)
    kernel = sampling_kernels(logits.devices(), options.kernels)
    step = jax.jit(
        partial(sample, vocab_limit=options.vocab, max_logprobs=MAX_LOGPROBS, kernel=kernel), donate_argnums=3
    )

    def measured(batch: SamplingBatch) -> float:
        nonlocal state
        started = time.perf_counter()
        ids, _, state = step(logits, batch, masks, state)
        jax.block_until_ready((ids, state))
        return 1e3 * (time.perf_counter() - started)

    batches = {name: batch_of([kind] * options.rows) for name, kind in KINDS.items()}
    kinds = list(KINDS.values())
    batches["mixed"] = batch_of([kinds[row % len(kinds)] for row in range(options.rows)])
    report(batches, measured, options.rounds)


def report(batches: dict[str, SamplingBatch], measured: Callable[[SamplingBatch], float], rounds: int) -> None:
    for batch in batches.values():
        measured(batch)  # a warm-up
    rounds_ms = [{name: measured(batch) for name, batch in batches.items()} for _ in range(rounds)]
    for name in batches:
        median = statistics.median(times[name] for times in rounds_ms)
        ratio = statistics.median(times[name] / times["greedy"] for times in rounds_ms)
        print(f"{name:24} {median:8.3f} ms {ratio:7.2f} x greedy")


if __name__ == "__main__":
    main()
