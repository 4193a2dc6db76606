"""Measure the speed of the engine alone: one batch, without HTTP.

python benchmarks/engine.py CHECKPOINT B:P:N [B:P:N ...] --dtype bf16 --quantization int8
"""

import importlib.metadata
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Contender, Generation, Session, argument_parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}  # short names are those of other engines


class Stopwatch:
    """Listens to all requests of a run: their ids, when every one had its first token, and when every one was done."""

    def __init__(self, batch: int) -> None:
        self._unfinished = batch
        self._ids: list[list[int]] = [[] for _ in range(batch)]
        self._done = threading.Event()
        self._started = time.perf_counter()
        self._first = self._last = 0.0
        self._decoded = 0
        self._failure: str | None = None

    def listener(self, row: int) -> Callable[[Any], None]:
        def listen(delta: Any) -> None:
            self._decoded += len(delta.token_ids)
            if delta.token_ids and not self._ids[row]:
                self._first = time.perf_counter()
                self._decoded = 0
            self._ids[row] += delta.token_ids
            if delta.finish_reason is not None:
                if delta.finish_reason != "length":
                    self._failure = f"a request ended with {delta.finish_reason!r}: {delta.message}"
                self._unfinished -= 1
                self._last = time.perf_counter()
                if self._unfinished == 0:
                    self._done.set()

        return listen

    def wait(self) -> Generation:
        """Raise RuntimeError where a request ended before its length."""
        self._done.wait()
        if self._failure:
            raise RuntimeError(self._failure)
        return Generation(self._first - self._started, self._last - self._started, self._ids, self._decoded)


def contender(session: Session) -> Contender:
    import jax

    from mpt_serve.engine import Engine, EngineConfig, SamplingParams

    session.imported()
    options = session.options
    settings = EngineConfig(
        max_num_seqs=session.max_batch,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=session.max_tokens,
        compilation_cache_dir=options.compilation_cache_dir,
        prefix_caching=False,  # prompts come again from run to run
        speculation=options.speculation,
    )
    dtype = DTYPES.get(options.dtype, options.dtype)
    engine = Engine.from_pretrained(
        options.checkpoint,
        settings,
        dtype=dtype,
        quantization=options.quantization,
        quantization_cache_dir=options.quantization_cache_dir,
    )

    def generate(prompts: list[list[int]], new: int) -> Generation:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        watch = Stopwatch(len(prompts))
        for row, prompt in enumerate(prompts):
            engine.submit(prompt, params, watch.listener(row))
        return watch.wait()

    return Contender(
        generate,
        version=f"{importlib.metadata.version('mpt-serve')} on jax {jax.__version__}",
        weight_bytes=engine.weight_bytes,
        vocab_size=engine.vocab_limit,
        details={"quantization": options.quantization},
    )


def main() -> None:
    parser = argument_parser(__doc__, [*DTYPES, *DTYPES.values()], default="bf16")
    parser.add_argument("--quantization", default="none", choices=("none", "int8", "int4"))
    parser.add_argument("--quantization-cache-dir", help="keep packed weights here, and map them from there")
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    parser.add_argument("--speculation", default="none", choices=("none", "ngram"))
    parser.add_argument("--compilation-cache-dir", help="keep compiled programs here")
    session = Session("mpt_serve", parser)
    session.measure(contender(session))


if __name__ == "__main__":
    main()
