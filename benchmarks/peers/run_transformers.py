"""Measure the speed of transformers' `generate` on this checkpoint. Runs in its own environment (environments.py)."""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from harness import Contender, Generation, Session, argument_parser


def contender(session: Session) -> Contender:
    import torch
    import transformers

    session.imported()
    torch.set_num_threads(session.options.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[session.options.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(session.options.checkpoint, dtype=dtype).eval()

    @torch.inference_mode()
    def generate(prompts: list[list[int]], new: int) -> Generation:
        moments: list[float] = []

        def note_step(
            input_ids: torch.Tensor, scores: Any, **_: Any
        ) -> torch.Tensor:  # called after each step; ends no row
            moments.append(time.perf_counter())
            return torch.zeros(len(prompts), dtype=torch.bool)

        ids = torch.tensor(prompts)
        started = time.perf_counter()
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=1,
            stopping_criteria=transformers.StoppingCriteriaList([note_step]),
        )
        total = time.perf_counter() - started
        return Generation(moments[0] - started, total, output[:, ids.shape[1] :].tolist())

    return Contender(
        generate,
        version=f"{transformers.__version__}, torch {torch.__version__}",
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        vocab_size=model.config.vocab_size,
    )


def main() -> None:
    session = Session("transformers", argument_parser(__doc__, ("bf16", "f32"), default="bf16"))
    session.measure(contender(session))


if __name__ == "__main__":
    main()
