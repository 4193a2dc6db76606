"""The ids that outputs consist of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer

from mpt_serve.structured_outputs.matcher import build_vocabulary

__all__ = ["Vocabulary"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What every state of every grammar needs of the tokenizer.

    size: ids are below it. eos_mask: [ceil(size / 32)] uint32, the mask of the ids in eos_token_ids.
    """

    tokens: LLTokenizer
    size: int
    eos_token_ids: frozenset[int]
    eos_mask: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, token_bytes: Sequence[bytes | None], eos_token_ids: Sequence[int]) -> Self:
        """Build from the bytes that each id adds to a text, None for none.

        End-of-sequence ids beyond the vocabulary are ignored. Raises ValueError if none is left: no output could end.
        """
        size = len(token_bytes)
        eos = sorted({i for i in eos_token_ids if 0 <= i < size})
        if not eos:
            raise ValueError(
                f"structured outputs need an end-of-sequence id below {size}, got {list(eos_token_ids)[:8]}"
            )
        mask = np.zeros((size + 31) // 32, np.uint32)
        for token_id in eos:
            mask[token_id // 32] |= np.uint32(1 << token_id % 32)
        return cls(build_vocabulary(token_bytes, eos), size, frozenset(eos), mask)
