"""Measure the speed of vLLM's CPU engine, in this process. Runs in its own environment (environments.py)."""

import itertools
import os
import sys
import time
from ctypes.util import find_library
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from environments import add_work_option
from harness import Contender, Generation, Session, argument_parser, checkpoint_weights

DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
ITEM_BYTES = {"f32": 4, "bf16": 2, "f16": 2}  # it repacks its parameters out of sight
CACHE_GIB = 2
PRELOADED = ("libiomp5", "libtcmalloc_minimal")


def preload() -> None:
    """Restart this script with the libraries that vLLM needs loaded before all others, if there are any.

    They are OpenMP's runtime, which comes with it, and tcmalloc, looked for beside that and in the system.
    """
    present = os.environ.get("LD_PRELOAD", "")
    found = [str(path) for name in PRELOADED for path in sorted((Path(sys.prefix) / "lib").glob(f"{name}.so*"))[:1]]
    if not any("tcmalloc" in path for path in found) and (system := find_library("tcmalloc_minimal")):
        found.append(system)
    if sys.platform == "linux" and found and not all(path in present for path in found):
        os.environ["LD_PRELOAD"] = ":".join([*found, *filter(None, [present])])
        os.execv(sys.executable, [sys.executable, *sys.argv])


def environment(session: Session) -> dict[str, str]:
    """Create the engine in this process, on the given cores, without network, its compiled programs below --work."""
    return {
        "VLLM_CACHE_ROOT": str(session.options.work / "vllm"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, session.cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": str(session.options.threads),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def contender(session: Session) -> Contender:
    os.environ.update(environment(session))
    import vllm
    from vllm.sampling_params import RequestOutputKind

    session.imported()
    options = session.options
    model = vllm.LLM(
        model=options.checkpoint,
        dtype=DTYPES[options.dtype],
        max_model_len=session.max_tokens + 16,
        max_num_seqs=session.max_batch,
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,
        enforce_eager=options.eager,
        disable_log_stats=True,
        seed=0,
    )
    engine = model.llm_engine
    names = map(str, itertools.count())

    def generate(prompts: list[list[int]], new: int) -> Generation:
        params = vllm.SamplingParams(
            temperature=0,
            max_tokens=new,
            min_tokens=new,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        rows: dict[str, list[int]] = {next(names): [] for _ in prompts}
        first, decoded = 0.0, 0
        started = time.perf_counter()
        for name, prompt in zip(rows, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                row, ids = rows[output.request_id], output.outputs[0].token_ids
                decoded += len(ids)
                if not row:
                    first, decoded = time.perf_counter() - started, 0
                row += ids
        total = time.perf_counter() - started
        return Generation(first, total, list(rows.values()), decoded)

    return Contender(
        generate,
        version=vllm.__version__,
        weight_bytes=sum(checkpoint_weights(options.checkpoint).values()) * ITEM_BYTES[options.dtype],
        details={
            "eager": options.eager,
            "preloaded": [Path(path).name for path in os.environ.get("LD_PRELOAD", "").split(":")],
        },
    )


def main() -> None:
    preload()
    parser = argument_parser(__doc__, tuple(DTYPES), default="bf16")
    add_work_option(parser)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    session = Session("vllm", parser)
    session.measure(contender(session))


if __name__ == "__main__":
    main()
