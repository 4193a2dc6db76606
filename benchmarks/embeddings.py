"""Measure what embeddings cost the streams that run beside them: the gaps between the streams' tokens.

python benchmarks/embeddings.py CHECKPOINT [--streams 8] [--clients 4] [--quantization int8]

Phases without and with embeddings alternate in one engine, without speculation. Each client embeds a text of 20 to 300
random ids (mean, no two alike) after the other. Prints mean, median, 99th and 99.9th percentile of the gaps of either
kind of phase, the ratio of the 99th, and the ids that were embedded per second while streams ran.
"""

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import DTYPES

PROMPT = 16
LENGTHS = 20, 300


def phase(engine: Any, streams: int, tokens: int, clients: int, rng: random.Random) -> tuple[list[float], int, float]:
    """Run streams of n tokens, and return their gaps in seconds, the ids embedded meanwhile, and the seconds."""
    from mpt_serve.engine import SamplingParams

    gaps: list[float] = []
    running, ended, embedded = [streams], threading.Event(), [0] * clients
    last = [0.0] * streams

    def listener(stream: int) -> Callable[[Any], None]:
        def listen(delta: Any) -> None:
            now = time.perf_counter()
            if last[stream] and delta.token_ids:
                gaps.append((now - last[stream]) / len(delta.token_ids))
            last[stream] = now
            running[0] -= delta.finish_reason is not None
            if not running[0]:
                ended.set()

        return listen

    def embed(client: int, seed: int) -> None:
        own = random.Random(seed)
        while not ended.is_set():
            ids = ids_of(own, own.randint(*LENGTHS), engine.vocab_limit)
            done = threading.Event()
            engine.submit(ids, SamplingParams(max_tokens=0, pooling="mean"), lambda _, done=done: done.set())
            done.wait()
            embedded[client] += len(ids)

    begin = time.perf_counter()
    for stream in range(streams):
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=stream)
        engine.submit(ids_of(rng, PROMPT, engine.vocab_limit), params, listener(stream))
    threads = [threading.Thread(target=embed, args=(client, rng.getrandbits(32))) for client in range(clients)]
    for thread in threads:
        thread.start()
    ended.wait()
    seconds, total = time.perf_counter() - begin, sum(embedded)
    for thread in threads:
        thread.join()
    return gaps, total, seconds


def ids_of(rng: random.Random, count: int, vocab: int) -> list[int]:
    """Return random ids."""
    return [rng.randrange(vocab) for _ in range(count)]


def quantile(numbers: list[float], share: float) -> float:
    """Return the smallest number that so large a share is not above."""
    return sorted(numbers)[min(len(numbers) - 1, int(share * len(numbers)))]


def main() -> None:
    """Run the benchmark of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=400, help="of each stream in a phase")
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--quantization", choices=("none", "int8", "int4"), default="none")
    args = parser.parse_args()
    from mpt_serve.engine import Engine, EngineConfig

    settings = EngineConfig(speculation="none", prefix_caching=False, max_num_seqs=max(32, 2 * args.streams))
    options = {"dtype": args.dtype, "quantization": args.quantization}
    rng = random.Random(1)
    with Engine.from_pretrained(args.checkpoint, settings, **options) as engine:
        gaps: dict[int, list[float]] = {0: [], args.clients: []}
        embedded, took = 0, 0.0
        for repetition in range(args.repetitions + 1):
            for clients, own in gaps.items():
                measured, ids, seconds = phase(engine, args.streams, args.tokens, clients, rng)
                if repetition:  # the first is for warming up
                    own += measured
                    embedded, took = embedded + ids, took + seconds * (clients > 0)
    for clients, own in gaps.items():
        middle, late, latest = (1000 * quantile(own, share) for share in (0.5, 0.99, 0.999))
        mean = 1000 * sum(own) / len(own)
        print(f"{clients} clients: mean {mean:.2f}, p50 {middle:.2f}, p99 {late:.2f}, p99.9 {latest:.2f} ms")
    alone, beside = gaps.values()
    print(f"p99 x {quantile(beside, 0.99) / quantile(alone, 0.99):.3f}, {embedded / took:.0f} ids embedded per second")


if __name__ == "__main__":
    main()
