"""Measure the throughput of a batch with all kinds of sampling, compared with the same batch decoded greedily.

python benchmarks/mixed.py CHECKPOINT [--batch 32] [--quantization int8]

Both alternate in one engine, without speculation and prefix cache; steps in which every row decodes are timed. Prints
ids per second of each, medians over the repetitions, and the median, smallest and largest of the repetitions' ratios.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine import DTYPES

PROMPT = 32
WARM_STEPS = 4  # until nothing of the prompts and of the beginning is left
# What the rows of the batch ask for, in turn.
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "min_p": 0.02},
    {"temperature": 1.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    {"temperature": 0.7, "top_p": 0.9, "logit_bias": {5: 2.0, 77: -3.0}},
    {"temperature": 1.0, "logprobs": 5},
    {"temperature": 1.0, "bad_words": ((11,), (5, 6)), "top_k": 40},
    {"temperature": 0.0, "allowed_token_ids": tuple(range(100, 20_000, 3))},
    {"temperature": 0.9, "min_p": 0.05, "stop_token_ids": (0, 1, 2)},
)


def measure(engine: Any, prompts: list[list[int]], kinds: tuple[dict[str, Any], ...], steps: int) -> float:
    """Measure ids per second over a number of steps of all rows."""
    from mpt_serve.engine import SamplingParams

    max_tokens = engine.stats().max_model_len - PROMPT
    received = [0] * len(prompts)

    def listener(row: int) -> Callable[[Any], None]:
        def listen(delta: Any) -> None:
            received[row] += len(delta.token_ids)

        return listen

    requests = []
    for row, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=max_tokens, seed=row, ignore_eos=True, **kinds[row % len(kinds)])
        if params.stop_token_ids:
            params = replace(params, min_tokens=max_tokens)  # no row may end
        requests.append(engine.submit(prompt, params, listener(row)))
    while min(received) < WARM_STEPS:
        time.sleep(0.001)
    first, start = engine.stats().steps, time.perf_counter()
    while (last := engine.stats().steps) < first + steps:
        time.sleep(0.001)
    elapsed = time.perf_counter() - start
    if engine.stats().running < len(prompts):
        raise RuntimeError("a row ended while its steps were timed: give --slack more")
    for request_id in requests:
        engine.cancel(request_id)
    return len(prompts) * (last - first) / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=24, help="timed in each turn (default: %(default)s)")
    parser.add_argument("--slack", type=int, default=100, help="ids of a row beyond those (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--dtype", choices=[*DTYPES, *DTYPES.values()], default="bf16")
    parser.add_argument("--quantization", default="none", choices=("none", "int8", "int4"))
    options = parser.parse_args()

    from mpt_serve.engine import Engine, EngineConfig

    settings = EngineConfig(
        max_num_seqs=options.batch,
        max_num_batched_tokens=512,
        max_model_len=PROMPT + options.steps + options.slack,
        prefix_caching=False,
        speculation="none",
    )
    dtype = DTYPES.get(options.dtype, options.dtype)
    with Engine.from_pretrained(options.checkpoint, settings, dtype=dtype, quantization=options.quantization) as engine:
        prompts = [[(7 * row + 13 * i) % engine.vocab_limit for i in range(PROMPT)] for row in range(options.batch)]
        turns = {"greedy": KINDS[:1], "mixed": KINDS}
        speeds: dict[str, list[float]] = {name: [] for name in turns}
        for repetition in range(options.repetitions + 1):
            for name in turns if repetition % 2 else reversed(turns):
                speed = measure(engine, prompts, turns[name], options.steps)
                if repetition:  # the first one warms up
                    speeds[name].append(speed)
                time.sleep(0.1)
    ratios = [mixed / greedy for mixed, greedy in zip(speeds["mixed"], speeds["greedy"], strict=True)]
    for name, values in speeds.items():
        print(f"{name:8s}{statistics.median(values):10.1f} ids/s")
    print(f"ratio   {statistics.median(ratios):10.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
