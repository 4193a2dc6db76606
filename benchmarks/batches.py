"""Measure what requests of batches cost those that somebody waits for.

python benchmarks/batches.py CHECKPOINT [--load 0.4] [--background 16] [--quantization int8]

Requests (a prompt of 64 ids, 32 tokens) come at random moments, so that the engine is busy for a share of the time; in
every second phase, other requests (prompts of 20 to 300 ids, 64 tokens) fill the background. Phases of either kind
follow each other in one engine as pairs, with the same moments, each kind first in every second pair. Prints median and
99th percentile of the time to the first token, of the gaps between tokens and of whole requests, over all phases; their
ratios, each the median of those of the pairs, with the smallest and the largest, as whatever else the machine does
changes from pair to pair; and the tokens per second that the background has generated.
"""

import argparse
import random
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from embeddings import ids_of, quantile
from engine import DTYPES

PROMPT, OUTPUT = 64, 32
LENGTHS, BACKGROUND_OUTPUT = (20, 300), 64


@dataclass
class Times:
    """Seconds, as those who wait see them."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


class Client:
    """One request, as it is heard of."""

    def __init__(self, times: Times) -> None:
        self.ended = threading.Event()
        self._times = times
        self._begin = self._last = time.perf_counter()

    def __call__(self, delta: Any) -> None:
        now = time.perf_counter()
        if delta.token_ids:
            first = self._last == self._begin
            (self._times.first if first else self._times.gaps).append(now - self._last)
            self._last = now
        if delta.finish_reason is not None:
            self._times.whole.append(now - self._begin)
            self.ended.set()


class Background:
    """Keeps a number of requests in the background; tokens: that they have generated."""

    def __init__(self, engine: Any, count: int, rng: random.Random) -> None:
        self.tokens = 0
        self._engine = engine
        self._rng = rng
        self._ends = False
        self._names = {self._submit() for _ in range(count)}

    def stop(self) -> None:
        """Cancel what runs."""
        self._ends = True
        for name in list(self._names):
            self._engine.cancel(name)

    def _submit(self) -> str:
        from mpt_serve.engine import SamplingParams

        params = SamplingParams(max_tokens=BACKGROUND_OUTPUT, ignore_eos=True, background=True)
        ids = ids_of(self._rng, self._rng.randint(*LENGTHS), self._engine.vocab_limit)
        name: list[str] = []

        def listen(delta: Any) -> None:
            self.tokens += len(delta.token_ids)
            if delta.finish_reason is not None and not self._ends:
                self._names.discard(name[0])
                self._names.add(self._submit())

        name.append(self._engine.submit(ids, params, listen))
        return name[0]


def phase(engine: Any, requests: int, pause_s: float, background: int, seed: int) -> tuple[Times, float]:
    """Return the times of requests with a mean pause between them, and the background's tokens per second."""
    from mpt_serve.engine import SamplingParams

    rng, times = random.Random(seed), Times()
    behind = Background(engine, background, random.Random(seed))
    begin = moment = time.perf_counter()
    clients = []
    for _ in range(requests):
        moment += rng.expovariate(1 / pause_s) if pause_s else 0.0
        time.sleep(max(0.0, moment - time.perf_counter()))
        clients.append(Client(times))
        params = SamplingParams(max_tokens=OUTPUT, ignore_eos=True)
        engine.submit(ids_of(rng, PROMPT, engine.vocab_limit), params, clients[-1])
        if not pause_s:
            clients[-1].ended.wait()
    for client in clients:
        client.ended.wait()
    rate = behind.tokens / (time.perf_counter() - begin)
    behind.stop()
    time.sleep(0.2)
    return times, rate


def main() -> None:
    """Run the benchmark of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--load", type=float, default=0.4, help="share of the time that the engine is busy without")
    parser.add_argument("--background", type=int, default=16, help="requests in the background")
    parser.add_argument("--requests", type=int, default=60, help="of a phase")
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--quantization", choices=("none", "int8", "int4"), default="none")
    args = parser.parse_args()
    from mpt_serve.engine import Engine, EngineConfig

    settings = EngineConfig(prefix_caching=False, max_num_seqs=32)
    options = {"dtype": args.dtype, "quantization": args.quantization}
    with Engine.from_pretrained(args.checkpoint, settings, **options) as engine:
        alone, _ = phase(engine, 5, 0.0, 0, 0)  # also warms up
        alone, _ = phase(engine, 20, 0.0, 0, 1)
        pause_s = quantile(alone.whole, 0.5) / args.load
        pairs: list[dict[bool, Times]] = []
        rates = []
        for repetition in range(args.repetitions):
            pairs.append({})
            for with_background in (False, True) if repetition % 2 else (True, False):
                count = args.background if with_background else 0
                pairs[-1][with_background], rate = phase(engine, args.requests, pause_s, count, repetition)
                rates += [rate] if with_background else []
    print(f"{1 / pause_s:.2f} requests/s, {len(pairs)} pairs of {args.requests} requests each")
    for name in ("first", "gaps", "whole"):
        print(f"{name}: {', '.join(compared(pairs, name, share) for share in (0.5, 0.99))}")
    print(f"background: {sum(rates) / len(rates):.0f} tokens/s")


def compared(pairs: Sequence[Mapping[bool, Times]], name: str, share: float) -> str:
    """Return a quantile of both kinds of phases, and the ratios of the pairs."""
    without, beside = (
        quantile([value for pair in pairs for value in getattr(pair[kind], name)], share) for kind in (False, True)
    )
    ratios = [
        quantile(getattr(pair[True], name), share) / quantile(getattr(pair[False], name), share) for pair in pairs
    ]
    found = f"x {statistics.median(ratios):.3f}, {min(ratios):.2f} to {max(ratios):.2f}"
    return f"p{100 * share:g} {1000 * without:.2f} -> {1000 * beside:.2f} ms ({found})"


if __name__ == "__main__":
    main()
