"""Measure the speed of CTranslate2's Generator on a converted checkpoint. Runs in its environment (environments.py)."""

import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from environments import CT2_TYPES, add_work_option, ct2_path
from harness import Contender, Generation, Session, argument_parser


def contender(session: Session) -> Contender:
    import ctranslate2

    session.imported()
    options = session.options
    folder = ct2_path(options.work, options.checkpoint, options.dtype)
    generator = ctranslate2.Generator(
        str(folder),
        device="cpu",
        compute_type=CT2_TYPES[options.dtype],
        intra_threads=options.threads,
        inter_threads=1,
    )
    vocabulary: list[str] = json.loads((folder / "vocabulary.json").read_text())  # prompts are tokens, not ids

    def generate(prompts: list[list[int]], new: int) -> Generation:
        tokens = [[vocabulary[token_id] for token_id in prompt] for prompt in prompts]
        first: dict[int, float] = {}

        def note_step(step: ctranslate2.GenerationStepResult) -> bool:
            first.setdefault(step.batch_id, time.perf_counter())
            return False

        started = time.perf_counter()
        results = generator.generate_batch(
            tokens,
            beam_size=1,
            min_length=new,
            max_length=new,
            include_prompt_in_result=False,
            max_batch_size=0,
            callback=note_step,
        )
        total = time.perf_counter() - started
        return Generation(max(first.values()) - started, total, [result.sequences_ids[0] for result in results])

    return Contender(
        generate,
        version=ctranslate2.__version__,
        weight_bytes=(folder / "model.bin").stat().st_size,
        vocab_size=len(vocabulary),
        details={"compute_type": generator.compute_type},
    )


def main() -> None:
    parser = argument_parser(__doc__, tuple(CT2_TYPES), default="int8")
    add_work_option(parser)
    session = Session("ctranslate2", parser)
    session.measure(contender(session))


if __name__ == "__main__":
    main()
