"""Shared by every measured engine: command line, prompts, timing, and one JSON schema. Standard library only.

Each engine's script turns its engine into a `Contender` and hands it to `Session.measure`. Then

    SCRIPT CHECKPOINT B:P:N [B:P:N ...] --dtype D

prints one JSON line per B:P:N (batch : prompt tokens : new tokens), medians over --reps repetitions after one warm-up
of the same batch and prompt. Decoding is greedy and never ends early. Prompts are distinct random ids from a fixed
seed, new ones at each repetition, so that no prefix occurs twice.

 ttft_s         submission to the first token of every row (prefill of the whole batch)
 prefill_tok_s  B * P / ttft_s
 decode_tok_s   B * (N - 1) / (total - ttft_s), all rows together; absent (null) where N is 1
 agg_tok_s      B * N / total
 cpu_share      CPU time / (wall time * threads): well below 1 means that other processes used the cores
 rss_mb         peak resident memory of the process
 weight_bytes   the weights as kept for decoding
 load_s         from imports done to the engine ready, compilation included; import_s apart
 warm_s         the warm-up
 spread         shortest and longest total

With --worker the script loads once for the shapes named, continues prompts that are the same for every engine
(`FIXED`), and prints a line with "ready" and `first_ids`, the ids that it generated for each. Then it replies to each
line {"shape": "B:P:N", "repetition": R} on its input with one result of that repetition, until its input ends.
"""

import argparse
import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

STARTED = time.perf_counter()
WARM_UP_TOKENS = 8
FIRST_ID, LAST_ID = 100, 50_000  # prompts keep clear of special ids and of rows that only pad a vocabulary


class Shape(NamedTuple):
    """`batch` prompts of `prompt` tokens each, submitted at once, `new` tokens generated for each."""

    batch: int
    prompt: int
    new: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse B:P:N. Raises ValueError for anything else."""
        shape = cls(*map(int, text.split(":")))
        if min(shape) < 1:
            raise ValueError(f"{text!r} is not B:P:N with three numbers from 1 on")
        return shape

    def __str__(self) -> str:
        return ":".join(map(str, self))


FIXED = Shape(8, 200, 16)  # what every engine continues once it has loaded, so that their outputs can be compared


class Generation(NamedTuple):
    """Seconds from submission to the first token of every row, and to the last token of all; each row's new ids.

    decoded: tokens that came after the first of every row; None where no row has more than one token until then. Where
    prompts are computed in several steps, rows that had their first token early decode meanwhile.
    """

    first: float
    total: float
    ids: list[list[int]]
    decoded: int | None = None


@dataclass(frozen=True)
class Contender:
    """A loaded engine.

    generate: prompts of equal length, number of new tokens -> their greedy continuations and how long they took.
    vocab_size: ids are below it. details: more fields for its JSON lines.
    """

    generate: Callable[[list[list[int]], int], Generation]
    version: str
    weight_bytes: int
    vocab_size: int = LAST_ID
    details: dict[str, Any] | None = None

    def continue_greedily(self, prompts: list[list[int]], new: int) -> Generation:
        """Generate `new` tokens for each prompt. Raises RuntimeError where another number came out."""
        generation = self.generate(prompts, new)
        counts = [len(row) for row in generation.ids]
        if counts != [new] * len(prompts):
            raise RuntimeError(f"rows of {counts} tokens were generated instead of {len(prompts)} of {new}")
        return generation

    def first_ids(self) -> list[list[int]]:
        """Return the continuations of the prompts that are the same for every engine, computed one by one."""
        prompts = make_prompts(FIXED, 0, self.vocab_size)
        return [self.continue_greedily([prompt], FIXED.new).ids[0] for prompt in prompts]


class Session:
    """One run of one engine's script, from its command line to its last JSON line.

    Made before the engine's library is imported: it binds the process to its cores, which thread pools count when they
    are made, and keeps the standard output to itself, so that nothing but JSON lines appears there.
    """

    def __init__(self, peer: str, parser: argparse.ArgumentParser) -> None:
        self.peer = peer
        self.options = parser.parse_args()
        self.shapes: list[Shape] = self.options.shapes
        self.cores = _bind(self.options.threads)
        self._output = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._imported = STARTED

    def imported(self) -> None:
        """Mark the end of the library's imports; what follows is counted as loading."""
        self._imported = time.perf_counter()

    @property
    def max_batch(self) -> int:
        return max(shape.batch for shape in self.shapes)

    @property
    def max_tokens(self) -> int:
        """Of the longest row, prompt and answer together."""
        shapes = [*self.shapes, FIXED] if self.options.worker else self.shapes
        return max(shape.prompt + shape.new for shape in shapes)

    def measure(self, contender: Contender) -> None:
        """Measure every shape of the command line or, as a worker, the shapes that the input requests."""
        loaded = time.perf_counter()
        common = {
            "peer": self.peer,
            "version": contender.version,
            "ckpt": Path(self.options.checkpoint).resolve().name,
            "dtype": self.options.dtype,
            "threads": self.options.threads,
            "weight_bytes": contender.weight_bytes,
            "load_s": round(loaded - self._imported, 2),
            "import_s": round(self._imported - STARTED, 2),
            **(contender.details or {}),
        }
        if self.options.worker:
            common["first_ids"] = contender.first_ids()
            self._print(common | {"ready": True})
            tasks: Iterable[tuple[Shape, Sequence[int]]] = map(_read_task, sys.stdin)
        else:
            tasks = ((shape, range(1, self.options.reps + 1)) for shape in self.shapes)
        for shape, repetitions in tasks:
            self._print(common | shape._asdict() | _measure(contender, shape, repetitions, self.options.threads))

    def _print(self, result: dict[str, Any]) -> None:
        line = json.dumps(result)
        print(line, file=self._output, flush=True)
        if self.options.out:
            with open(self.options.out, "a") as file:
                file.write(line + "\n")


def argument_parser(description: str | None, dtypes: Sequence[str], default: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all scripts have; a script adds its own."""
    parser = argparse.ArgumentParser(
        description=description, epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("shapes", nargs="+", metavar="B:P:N", type=Shape.parse)
    parser.add_argument("--dtype", default=default, choices=dtypes)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="cores this process may use (default: %(default)s)")
    parser.add_argument("--out", help="append the JSON lines to this file too")
    parser.add_argument("--worker", action="store_true", help="load once, then measure what the standard input asks")
    return parser


def make_prompts(shape: Shape, repetition: int, vocab_size: int, warm_up: bool = False) -> list[list[int]]:
    source = random.Random(f"{repetition} {shape.prompt} {warm_up}")
    limit = min(LAST_ID, vocab_size)
    return [[source.randrange(FIRST_ID, limit) for _ in range(shape.prompt)] for _ in range(shape.batch)]


def checkpoint_weights(folder: str | Path) -> dict[str, int]:
    """Return the number of elements of all tensors in a folder's safetensors files, read from the headers."""
    sizes: dict[str, int] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                sizes[name] = 1
                for length in tensor["shape"]:
                    sizes[name] *= length
    return sizes


def _bind(threads: int) -> list[int]:
    if not hasattr(os, "sched_setaffinity"):
        return list(range(threads))
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return cores


def _read_task(line: str) -> tuple[Shape, Sequence[int]]:
    task = json.loads(line)
    return Shape.parse(task["shape"]), (int(task["repetition"]),)


def _measure(contender: Contender, shape: Shape, repetitions: Sequence[int], threads: int) -> dict[str, Any]:
    def run(repetition: int, new: int, warm_up: bool = False) -> Generation:
        return contender.continue_greedily(make_prompts(shape, repetition, contender.vocab_size, warm_up), new)

    try:
        started = time.perf_counter()
        run(repetitions[0], min(shape.new, WARM_UP_TOKENS), warm_up=True)
        warm, cpu = time.perf_counter() - started, time.process_time()
        generations = [run(repetition, shape.new) for repetition in repetitions]
        share = (time.process_time() - cpu) / ((time.perf_counter() - started - warm) * threads)
    except Exception as error:  # a shape that fails is a result too
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return _summary(shape, generations) | {
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "warm_s": round(warm, 2),
        "cpu_share": round(share, 2),
        "reps": len(repetitions),
    }


def _summary(shape: Shape, generations: list[Generation]) -> dict[str, Any]:
    def median(value: Callable[[Generation], float], digits: int = 2) -> float:
        return round(statistics.median(map(value, generations)), digits)

    def decoded(generation: Generation) -> int:
        return batch * (new - 1) if generation.decoded is None else generation.decoded

    batch, length, new = shape
    totals = [generation.total for generation in generations]
    return {
        "decode_tok_s": median(lambda g: decoded(g) / (g.total - g.first)) if new > 1 else None,
        "prefill_tok_s": median(lambda g: batch * length / g.first),
        "ttft_s": median(lambda g: g.first, 5),
        "agg_tok_s": median(lambda g: batch * new / g.total),
        "spread": [round(min(totals), 4), round(max(totals), 4)],
    }
