"""Measure the speed of llama.cpp on a converted checkpoint. Runs in its own environment (environments.py).

Through the low-level API: one sequence per row, all rows of a step in one `llama_decode`, a greedy sampler. That is
what llama.cpp's server does with as many slots as rows, without its HTTP.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from environments import GGUF_QUANTIZED, add_work_option, gguf_path
from harness import Contender, Generation, Session, argument_parser

BATCH_TOKENS = 2048  # tokens of one llama_decode; it computes them 512 at a time
CELL_GRAIN = 256  # contexts are sized in multiples of it


@dataclass(frozen=True)
class Entry:
    """One token of a step: of which row, at which position, and whether its logits are wanted."""

    token: int
    position: int
    row: int
    last: bool


class Rows:
    """A context for `batch` rows of at most `length` tokens each, `length` a multiple of `CELL_GRAIN`."""

    def __init__(self, model: Any, batch: int, length: int, threads: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = batch * length
        settings.n_seq_max = batch
        settings.n_batch = BATCH_TOKENS
        settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = batch == 1
        settings.offload_kqv = False
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp made no context for {batch} rows of {length} tokens")
        self._step = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(self._sampler, llama_cpp.llama_sampler_init_greedy())

    def clear(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def close(self) -> None:
        self._library.llama_sampler_free(self._sampler)
        self._library.llama_batch_free(self._step)
        self._library.llama_free(self._context)

    def decode(self, entries: list[Entry]) -> dict[int, int]:
        """Compute one step; return the token sampled for each row whose logits were requested."""
        step = self._step
        step.n_tokens = len(entries)
        for index, entry in enumerate(entries):
            step.token[index] = entry.token
            step.pos[index] = entry.position
            step.n_seq_id[index] = 1
            step.seq_id[index][0] = entry.row
            step.logits[index] = entry.last
        status = self._library.llama_decode(self._context, step)
        if status:
            raise RuntimeError(f"llama_decode failed (status {status})")
        sample = self._library.llama_sampler_sample
        return {e.row: sample(self._sampler, self._context, i) for i, e in enumerate(entries) if e.last}


def generate(rows: Rows, prompts: list[list[int]], new: int) -> Generation:
    length = len(prompts[0])
    rows.clear()
    started = time.perf_counter()
    entries = [
        Entry(token, position, row, last=position == length - 1)
        for row, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
    sampled: dict[int, int] = {}
    for start in range(0, len(entries), BATCH_TOKENS):
        sampled |= rows.decode(entries[start : start + BATCH_TOKENS])
    first = time.perf_counter() - started
    steps = [sampled]
    for position in range(length, length + new - 1):
        steps.append(rows.decode([Entry(token, position, row, last=True) for row, token in steps[-1].items()]))
    total = time.perf_counter() - started
    return Generation(first, total, [[step[row] for step in steps] for row in range(len(prompts))])


def contender(session: Session) -> Contender:
    import llama_cpp

    llama_cpp.llama_backend_init()
    session.imported()
    options = session.options
    path = gguf_path(options.work, options.checkpoint, options.dtype)
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp could not read {path}; environments.py convert writes it")
    contexts: dict[tuple[int, int], Rows] = {}  # the latest shape's

    def run(prompts: list[list[int]], new: int) -> Generation:
        length = len(prompts[0]) + new
        key = len(prompts), CELL_GRAIN * -(-length // CELL_GRAIN)
        if key not in contexts:
            while contexts:
                contexts.popitem()[1].close()
            contexts[key] = Rows(model, *key, options.threads)
        return generate(contexts[key], prompts, new)

    run([[100] * 32], 2)  # so that load_s counts what is read and made at the first step
    return Contender(
        run,
        version=f"llama-cpp-python {llama_cpp.__version__}",
        weight_bytes=llama_cpp.llama_model_size(model),
    )


def main() -> None:
    parser = argument_parser(__doc__, ("bf16", *GGUF_QUANTIZED), default="q8_0")
    add_work_option(parser)
    session = Session("llama_cpp", parser)
    session.measure(contender(session))


if __name__ == "__main__":
    main()
