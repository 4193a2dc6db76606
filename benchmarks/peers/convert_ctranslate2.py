"""Convert MPT to CTranslate2: CHECKPOINT TARGET TYPE. Runs in CTranslate2's environment.

The stock converter registers MPT under the name of its remote-code configuration class only, so that transformers'
class is refused; both describe the same weights.
"""

import sys

from ctranslate2.converters import transformers as converters


def main() -> None:
    checkpoint, target, stored = sys.argv[1:]
    converters._MODEL_LOADERS["MptConfig"] = converters._MODEL_LOADERS["MPTConfig"]
    converters.TransformersConverter(checkpoint, low_cpu_mem_usage=True).convert(
        target, quantization=stored, force=True
    )


if __name__ == "__main__":
    main()
