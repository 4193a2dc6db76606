"""Measure the speed of OpenVINO GenAI on an exported checkpoint. Runs in its own environment (environments.py).

With the backend that it takes by default, paged attention, it computes MPT without ALiBi; so SDPA is used, the other.
"""

import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from environments import OPENVINO_FORMATS, add_work_option, openvino_path
from harness import Contender, Generation, Session, argument_parser


def contender(session: Session) -> Contender:
    import numpy as np
    import openvino
    import openvino_genai

    session.imported()
    options = session.options
    folder = openvino_path(options.work, options.checkpoint, options.dtype)
    pipeline = openvino_genai.LLMPipeline(
        folder, "CPU", ATTENTION_BACKEND=options.attention_backend, INFERENCE_NUM_THREADS=options.threads
    )

    def generate(prompts: list[list[int]], new: int) -> Generation:
        settings = openvino_genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
        ids = np.array(prompts, np.int64)
        started = time.perf_counter()
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        result = pipeline.generate(inputs, settings)
        total = time.perf_counter() - started
        first = result.perf_metrics.get_ttft().mean / 1000  # its own measurement: it streams single rows only
        return Generation(first, total, result.tokens)

    return Contender(
        generate,
        version=openvino_genai.__version__,
        weight_bytes=(folder / "openvino_model.bin").stat().st_size,
        details={"attention_backend": options.attention_backend},
    )


def main() -> None:
    parser = argument_parser(__doc__, OPENVINO_FORMATS, default="int8")
    add_work_option(parser)
    parser.add_argument("--attention-backend", default="SDPA", choices=("SDPA", "PA"))
    session = Session("openvino", parser)
    session.measure(contender(session))


if __name__ == "__main__":
    main()
