"""What speculation by prompt lookup brings: decode tokens/s with and without it, in turns, on the same requests.

    python benchmarks/make_copying_checkpoint.py ~/mpt/L-copying && python benchmarks/make_checkpoints.py ~/mpt L
    python benchmarks/speculation.py --copying ~/mpt/L-copying --random ~/mpt/L [--quantization int8]

Work that copies, greedy, on weights that copy (make_copying_checkpoint.py); a prompt is a passage of ids, as uneven in
their frequencies as words, and the first ids of the answer, which say what to copy:

 quote    an answer out of the passage: 128 tokens from its middle, word for word
 edit     the passage again, one id in 16 rewritten
 summary  the passage again, one id in 6 rewritten

Text that does not repeat, sampled at temperature 1 from random weights:

 fresh    any id of the vocabulary is about as likely as any other: no two ids ever come again together
 uneven   100 ids as uneven as words (by logit_bias): pairs of them come again all the time, and never go on alike

Prints a table: medians over the repetitions, ratio of each repetition's two turns with its smallest and largest, share
of accepted drafts, ids per step, and whether both turns gave the same ids, which they must.
"""

import argparse
import math
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import DTYPES
from make_copying_checkpoint import REWRITTEN

FIRST_ID, NUM_IDS = 1000, 20_000  # of passages
PASSAGE, ANCHOR = 384, 4
UNEVEN_IDS = 100


@dataclass(frozen=True)
class Workload:
    """kind: the checkpoint it runs on. make: a source of randomness -> prompt, and more sampling parameters."""

    name: str
    kind: str
    new_tokens: int
    make: Callable[[random.Random], tuple[list[int], dict[str, Any]]]


def passage(source: random.Random, rewritten: float) -> list[int]:
    """Ids with frequencies as 1 / rank; a share of them such that the copying weights rewrite them."""

    def draw() -> int:
        rank = int(NUM_IDS ** source.random())
        block = FIRST_ID // REWRITTEN + rank
        return block * REWRITTEN + (0 if source.random() < rewritten else 1 + rank % (REWRITTEN - 1))

    return [draw() % 50_000 for _ in range(PASSAGE)]


def copying(name: str, rewritten: float, begin: int, new_tokens: int) -> Workload:
    def make(source: random.Random) -> tuple[list[int], dict[str, Any]]:
        ids = passage(source, rewritten)
        return ids + ids[begin : begin + ANCHOR], {"temperature": 0}

    return Workload(name, "copying", new_tokens, make)


def fresh(source: random.Random) -> tuple[list[int], dict[str, Any]]:
    return passage(source, 0), {"temperature": 1, "seed": source.randrange(2**32)}


def uneven(source: random.Random) -> tuple[list[int], dict[str, Any]]:
    prompt, params = fresh(source)
    ids = source.sample(range(FIRST_ID, 50_000), UNEVEN_IDS)
    # Far above all others, and among each other as 1 / rank.
    return prompt, params | {"logit_bias": {token: 30 - math.log(rank) for rank, token in enumerate(ids, start=1)}}


WORKLOADS = (
    copying("quote", 0, PASSAGE // 2, 128),
    copying("edit", 1 / 16, 0, 256),
    copying("summary", 1 / 6, 0, 256),
    Workload("fresh", "random", 128, fresh),
    Workload("uneven", "random", 128, uneven),
)


@dataclass(frozen=True)
class Turn:
    """What one request of a workload took in one engine."""

    token_ids: tuple[int, ...]
    rate: float  # ids per second after the first
    steps: int
    drafted: int
    accepted: int


def take_turn(engine: Any, workload: Workload, repetition: int) -> Turn:
    from mpt_serve.engine import SamplingParams

    prompt, params = workload.make(random.Random(f"{workload.name} {repetition}"))
    done = threading.Event()
    ids: list[int] = []
    times: list[float] = []

    def listen(delta: Any) -> None:
        ids.extend(delta.token_ids)
        if delta.token_ids:
            times.append(time.perf_counter())
        if delta.finish_reason is not None:
            done.set()

    before = engine.stats()
    engine.submit(prompt, SamplingParams(max_tokens=workload.new_tokens, ignore_eos=True, **params), listen)
    done.wait()
    after = engine.stats()
    if len(ids) != workload.new_tokens:
        raise RuntimeError(f"{workload.name}: {len(ids)} ids instead of {workload.new_tokens}")
    return Turn(
        tuple(ids),
        (len(ids) - 1) / (times[-1] - times[0]),
        len(times),
        after.drafted_tokens - before.drafted_tokens,
        after.accepted_tokens - before.accepted_tokens,
    )


def measure(engines: dict[str, Any], workload: Workload, repetitions: int) -> str:
    """One line of the table; the engines take turns, and the first to go changes."""
    turns: dict[str, list[Turn]] = {name: [] for name in engines}
    for repetition in range(repetitions + 1):  # the first warms up
        for name in list(engines)[:: 1 if repetition % 2 else -1]:
            turn = take_turn(engines[name], workload, repetition)
            if repetition:
                turns[name].append(turn)
    off, on = turns["none"], turns["ngram"]
    ratios = [b.rate / a.rate for a, b in zip(off, on, strict=True)]
    drafted = sum(turn.drafted for turn in on)
    accepted = sum(turn.accepted for turn in on) / drafted if drafted else 0
    equal = all(a.token_ids == b.token_ids for a, b in zip(off, on, strict=True))
    per_step = sum(len(turn.token_ids) for turn in on) / sum(turn.steps for turn in on)
    return (
        f"{workload.name:8} {statistics.median(t.rate for t in off):8.2f} {statistics.median(t.rate for t in on):8.2f}"
        f" {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {accepted:8.0%}"
        f" {drafted / repetitions:8.0f} {per_step:8.2f}  {'yes' if equal else 'NO'}"
    )


def load(checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """An engine with speculation and one without."""
    from mpt_serve.engine import Engine, EngineConfig

    def engine(speculation: str) -> Engine:
        settings = EngineConfig(
            max_num_seqs=options.max_num_seqs,
            max_model_len=1024,
            speculation=speculation,
            num_draft_tokens=options.num_draft_tokens,
            compilation_cache_dir=options.compilation_cache_dir,
        )
        dtype = DTYPES.get(options.dtype, options.dtype)
        return Engine.from_pretrained(checkpoint, settings, dtype=dtype, quantization=options.quantization)

    return {name: engine(name) for name in ("none", "ngram")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copying", type=Path, help="a checkpoint of make_copying_checkpoint.py")
    parser.add_argument("--random", type=Path, help="a checkpoint of make_checkpoints.py")
    parser.add_argument("--workloads", nargs="+", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--dtype", default="bf16", choices=[*DTYPES, *DTYPES.values()])
    parser.add_argument("--quantization", default="none", choices=("none", "int8", "int4"))
    parser.add_argument("--num-draft-tokens", type=int, default=11)
    parser.add_argument("--max-num-seqs", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="cores this process may use (default: %(default)s)")
    parser.add_argument("--compilation-cache-dir", help="keep compiled programs here")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    print(
        f"{'':8} {'without':>8} {'with':>8} {'ratio':>6} {'':16} {'accepted':>8} {'drafted':>8} {'ids/step':>8}  equal"
    )
    for kind in ("copying", "random"):
        checkpoint = getattr(options, kind)
        workloads = [w for w in WORKLOADS if w.kind == kind and w.name in (options.workloads or [w.name])]
        if checkpoint is None or not workloads:
            continue
        engines = load(checkpoint, options)
        for workload in workloads:
            print(measure(engines, workload, options.repetitions), flush=True)
        for engine in engines.values():
            engine.close()


if __name__ == "__main__":
    main()
