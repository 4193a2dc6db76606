"""Speed of the engine alone: a whole batch at once, greedy, without HTTP.

    python benchmarks/engine.py CHECKPOINT B:P:N [B:P:N ...] --dtype bf16

prints one JSON line per B:P:N (batch : prompt tokens : new tokens), medians over --reps repetitions after one warm-up.
Prompts are distinct random ids from a fixed seed, others at each repetition, so that no prefix is met twice.

 ttft_s         submission to the first token of every row (prefill of the whole batch)
 prefill_tok_s  B * P / ttft_s
 decode_tok_s   B * (N - 1) / (total - ttft_s), all rows together
 agg_tok_s      B * N / total
 cpu_share      CPU time / (wall time * threads): well below 1 means that something else had the cores
 rss_mb         peak resident memory of the process
 load_s         from imports done to the engine ready, compilation included; import_s apart
 warm_s         the warm-up
 spread         shortest and longest total
"""

import argparse
import json
import os
import random
import resource
import statistics
import sys
import threading
import time
from pathlib import Path

STARTED = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PEER = "mpt_serve"
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # short names are those of other engines


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("shapes", nargs="+", metavar="B:P:N", type=lambda text: tuple(map(int, text.split(":"))))
    parser.add_argument("--dtype", default="bf16", choices=[*DTYPES, *DTYPES.values()])
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="cores this process may use")
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    parser.add_argument("--compilation-cache-dir", help="keep compiled programs here")
    parser.add_argument("--out", help="append the JSON lines to this file too")
    return parser.parse_args()


def make_prompts(batch: int, length: int, repetition: int, vocab: int) -> list[list[int]]:
    source = random.Random(1000 * repetition + length)
    return [[source.randrange(100, vocab) for _ in range(length)] for _ in range(batch)]


class Stopwatch:
    """Listens to all requests of a run: when every one had its first token, and when every one was done."""

    def __init__(self, batch: int) -> None:
        self._unfinished = batch
        self._seen: set[int] = set()
        self._done = threading.Event()
        self._started = time.perf_counter()
        self._first = self._last = 0.0

    def listener(self, row: int):
        def listen(delta) -> None:
            if delta.token_ids and row not in self._seen:
                self._seen.add(row)
                self._first = time.perf_counter()
            if delta.finish_reason is not None:
                assert delta.finish_reason == "length", delta
                self._unfinished -= 1
                self._last = time.perf_counter()
                if self._unfinished == 0:
                    self._done.set()

        return listen

    def wait(self) -> tuple[float, float]:
        """(time to the first token of every row, total) in seconds."""
        self._done.wait()
        return self._first - self._started, self._last - self._started


def run(engine, prompts: list[list[int]], params) -> tuple[float, float]:
    watch = Stopwatch(len(prompts))
    for row, prompt in enumerate(prompts):
        engine.submit(prompt, params, watch.listener(row))
    return watch.wait()


def measure(engine, shape: tuple[int, int, int], arguments: argparse.Namespace, vocab: int) -> dict[str, object]:
    from mpt_serve.engine import SamplingParams

    batch, length, new = shape

    def params(max_tokens: int) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)

    started = time.perf_counter()
    run(engine, make_prompts(batch, length, 99, vocab), params(min(new, 8)))
    warm = time.perf_counter() - started
    cpu, wall = time.process_time(), time.perf_counter()
    times = [
        run(engine, make_prompts(batch, length, repetition + 1, vocab), params(new))
        for repetition in range(arguments.reps)
    ]
    share = (time.process_time() - cpu) / ((time.perf_counter() - wall) * arguments.threads)

    def median(value, digits: int = 2) -> float:
        return round(statistics.median(value(first, total) for first, total in times), digits)

    return {
        "decode_tok_s": median(lambda first, total: batch * (new - 1) / (total - first)) if new > 1 else None,
        "prefill_tok_s": median(lambda first, total: batch * length / first),
        "ttft_s": median(lambda first, total: first, 4),
        "agg_tok_s": median(lambda first, total: batch * new / total),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "warm_s": round(warm, 2),
        "cpu_share": round(share, 2),
        "reps": arguments.reps,
        "spread": [round(min(total for _, total in times), 3), round(max(total for _, total in times), 3)],
    }


def main() -> None:
    arguments = parse_arguments()
    if hasattr(os, "sched_setaffinity"):  # before the device's thread pool is made, which counts the cores it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])

    from mpt_serve.engine import Engine, EngineConfig

    imported = time.perf_counter()
    settings = EngineConfig(
        max_num_seqs=max(batch for batch, _, _ in arguments.shapes),
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        max_model_len=max(length + new for _, length, new in arguments.shapes),
        compilation_cache_dir=arguments.compilation_cache_dir,
    )
    engine = Engine.from_pretrained(arguments.checkpoint, settings, dtype=DTYPES.get(arguments.dtype, arguments.dtype))
    loaded = time.perf_counter()
    for shape in arguments.shapes:
        result: dict[str, object] = {
            "peer": PEER,
            "ckpt": Path(arguments.checkpoint).resolve().name,
            "dtype": arguments.dtype,
            **dict(zip(("batch", "prompt", "new"), shape, strict=True)),
        }
        try:
            result |= measure(engine, shape, arguments, min(50_000, engine.vocab_limit))
        except Exception as error:  # a shape that fails is a result too
            result["error"] = f"{type(error).__name__}: {error}"[:300]
        result |= {
            "load_s": round(loaded - imported, 2),
            "threads": arguments.threads,
            "import_s": round(imported - STARTED, 2),
        }
        line = json.dumps(result)
        print(line, flush=True)
        if arguments.out:
            with open(arguments.out, "a") as file:
                file.write(line + "\n")
    engine.close()


if __name__ == "__main__":
    main()
