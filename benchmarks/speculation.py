"""Measure the gain of speculation: decode tokens/s with and without it, interleaved, on the same requests.

    python benchmarks/make_copying_checkpoint.py ~/mpt/L-copying && python benchmarks/make_checkpoints.py ~/mpt L
    python benchmarks/speculation.py --copying ~/mpt/L-copying --random ~/mpt/L [--quantization int8]

Work that copies, greedy, on weights that copy (make_copying_checkpoint.py); a prompt is a passage of 384 of 800
ids, and the first ids of the output, which determine what is copied:

 quote    a quotation from the passage: 128 tokens from its middle, word for word
 edit     the passage again, one id in 16 rewritten
 summary  the passage again, one id in 6 rewritten

Text that does not repeat, sampled at temperature 1 from random weights:

 fresh    any id of the vocabulary is about as likely as any other: no pair of ids ever repeats
 uneven   100 ids as uneven as words (by logit_bias): pairs of them repeat all the time, and continue differently

Prints a table: ids per second, medians over the repetitions; the ratio of each repetition's two runs, its median,
smallest and largest; the share of drafts that were accepted; ids drafted for a request; ids per step; whether both
runs gave the same ids, which they must; and the share of ids that the weights are made to give.
"""

import argparse
import math
import operator
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import DTYPES
from make_copying_checkpoint import REWRITTEN

FIRST_ID, NUM_IDS = 1000, 800  # of passages
PASSAGE, ANCHOR = 384, 4
UNEVEN_IDS = 100


class Task(NamedTuple):
    """A request; expected: the output, where the weights are made to give one."""

    prompt: list[int]
    params: dict[str, Any]
    expected: list[int] | None = None


@dataclass(frozen=True)
class Workload:
    """kind: of the checkpoint that it runs on."""

    name: str
    kind: str
    new_tokens: int
    make: Callable[[random.Random], Task]


def passage(source: random.Random, rewritten: float) -> list[int]:
    """Return ids that repeat at a distance; the copying weights rewrite a share of them."""
    ids: list[int] = []
    while len(ids) < PASSAGE:
        place = 0 if source.random() < rewritten else source.randrange(2, REWRITTEN)  # 1 is what 0 is rewritten to
        token = FIRST_ID + REWRITTEN * source.randrange(NUM_IDS // REWRITTEN) + place
        if token not in ids[-4:]:
            ids.append(token)
    return ids


def copying(name: str, rewritten: float, begin: int, new_tokens: int) -> Workload:
    def make(source: random.Random) -> Task:
        ids = passage(source, rewritten)
        start = begin + ANCHOR
        answer = [token + (token % REWRITTEN == 0) for token in ids[start : start + new_tokens]]
        return Task(ids + ids[begin:start], {"temperature": 0}, answer)

    return Workload(name, "copying", new_tokens, make)


def fresh(source: random.Random) -> Task:
    return Task(passage(source, 0), {"temperature": 1, "seed": source.randrange(2**32)})


def uneven(source: random.Random) -> Task:
    prompt, params, _ = fresh(source)
    ids = source.sample(range(FIRST_ID, 50_000), UNEVEN_IDS)
    # Far above all others, and among each other as 1 / rank.
    return Task(prompt, params | {"logit_bias": {token: 30 - math.log(rank) for rank, token in enumerate(ids, 1)}})


WORKLOADS = (
    copying("quote", 0, PASSAGE // 2, 128),
    copying("edit", 1 / 16, 0, 256),
    copying("summary", 1 / 6, 0, 256),
    Workload("fresh", "random", 128, fresh),
    Workload("uneven", "random", 128, uneven),
)


@dataclass(frozen=True)
class Turn:
    """What one request of a workload took in one engine. as_expected: share of its ids; None where none are."""

    token_ids: tuple[int, ...]
    rate: float  # ids per second after the first
    steps: int
    drafted: int
    accepted: int
    as_expected: float | None


def take_turn(engine: Any, workload: Workload, repetition: int) -> Turn:
    from mpt_serve.engine import SamplingParams

    task = workload.make(random.Random(f"{workload.name} {repetition}"))
    params = SamplingParams(max_tokens=workload.new_tokens, ignore_eos=True, **task.params)
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
    engine.submit(task.prompt, params, listen)
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
        None if task.expected is None else statistics.mean(map(operator.eq, ids, task.expected)),
    )


def measure(engines: dict[str, Any], workload: Workload, repetitions: int) -> str:
    """Measure one line of the table; the engines alternate, and so does which of them is first."""
    turns: dict[str, list[Turn]] = {name: [] for name in engines}
    for repetition in range(repetitions + 1):  # the first warms up
        for name in list(engines)[:: 1 if repetition % 2 else -1]:
            turn = take_turn(engines[name], workload, repetition)
            if repetition:
                turns[name].append(turn)
    off, on = turns.values()
    ratios = [b.rate / a.rate for a, b in zip(off, on, strict=True)]
    drafted = sum(turn.drafted for turn in on)
    columns = (
        f"{workload.name:8}",
        f"{statistics.median(turn.rate for turn in off):8.2f}",
        f"{statistics.median(turn.rate for turn in on):8.2f}",
        f"{statistics.median(ratios):7.2f} ({min(ratios):5.2f} to {max(ratios):5.2f})",
        f"{sum(turn.accepted for turn in on) / drafted:8.0%}" if drafted else f"{'-':>8}",
        f"{drafted / repetitions:8.0f}",
        f"{sum(len(turn.token_ids) for turn in on) / sum(turn.steps for turn in on):8.2f}",
        "  yes" if all(a.token_ids == b.token_ids for a, b in zip(off, on, strict=True)) else "   NO",
        " -" if on[0].as_expected is None else f"{statistics.mean(turn.as_expected or 0 for turn in on):9.0%}",
    )
    return " ".join(columns)


def load(checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return an engine with speculation and one without, over the same weights."""
    from model.kernel_selection import weight_format
    from model.pretrained import find_device, mpt_from_pretrained
    from mpt_serve.engine import Engine, EngineConfig
    from mpt_serve.engine.speculative import DraftModel

    format = weight_format({find_device(None)}, options.quantization)
    dtype = DTYPES.get(options.dtype, options.dtype)
    weights, config = mpt_from_pretrained(checkpoint, dtype=dtype, format=format)
    draft = None
    if options.draft is not None:
        draft = DraftModel(*mpt_from_pretrained(options.draft, dtype=dtype, format=format))

    def engine(speculation: str) -> Engine:
        settings = EngineConfig(
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=128,
            max_model_len=1024,
            speculation=speculation,
            num_draft_tokens=options.num_draft_tokens,
            compilation_cache_dir=options.compilation_cache_dir,
        )
        return Engine(weights, config, settings, draft=draft if speculation == "draft" else None)

    return {name: engine(name) for name in ("none", "draft" if draft else "ngram")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copying", type=Path, help="a checkpoint of make_copying_checkpoint.py")
    parser.add_argument("--random", type=Path, help="a checkpoint of make_checkpoints.py")
    parser.add_argument("--draft", type=Path, help="a smaller checkpoint that drafts, instead of prompt lookup")
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
    print(f"{'without':>17} {'with':>8}   ratio {'accepted':>25} {'drafted':>8} ids/step equal as expected")
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
