"""Compare what lm-eval measured of each completion with what the library computes: log probabilities, greedy flags.

usage: compare.py OUTPUT_FOLDER [MODEL]

OUTPUT_FOLDER: `--output_path` of a run with `--log_samples`. MODEL: as for `LLM.from_pretrained`; 'embedded' without.
Exits with 1 where a flag differs, or a log probability by more than a millionth of it.
"""

import json
import sys
from pathlib import Path

from mpt_serve.engine import EngineConfig, SamplingParams
from mpt_serve.llm import LLM

TOLERANCE = 1e-6  # of sums, which both sides add up in different orders


def main() -> int:
    """Print the comparison, and return the exit status."""
    samples = [
        json.loads(line)
        for path in sorted(Path(sys.argv[1]).rglob("samples_*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    pairs = [
        (argument["arg_0"], argument["arg_1"], float(response[0][0]), str(response[0][1]) == "True")
        for sample in samples
        for argument, response in zip(sample["arguments"].values(), sample["resps"], strict=True)
        if isinstance(argument["arg_1"], str)  # else the settings of what is generated
    ]
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    with LLM.from_pretrained(*sys.argv[2:] or ["embedded"], EngineConfig(pre_compile=False)) as llm:
        assert llm.tokenizer is not None
        starts = [len(llm.tokenizer.encode(context)) for context, *_ in pairs]
        whole = llm.generate([context + answer for context, answer, *_ in pairs], params)
    different = 0
    for (_, answer, logprob, greedy), start, completion in zip(pairs, starts, whole, strict=True):
        tokens = completion.prompt_logprobs[start:]
        own = sum(token.logprob for token in tokens), all(token.rank == 1 for token in tokens)
        if own[1] != greedy or abs(own[0] - logprob) > TOLERANCE * max(1, abs(own[0])):
            different += 1
            print(f"{answer!r}: lm-eval has {logprob}, {greedy}; the library {own[0]}, {own[1]}")
    flags = sum(greedy for *_, greedy in pairs)
    print(f"{len(pairs)} completions, {flags} of them greedy: {different} differ")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
