"""Where one answer stands in its guide: which ids may come next."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from mpt_serve.engine.request import RequestError
from mpt_serve.guided.matcher import error_text
from mpt_serve.guided.vocabulary import Vocabulary

__all__ = ["GuideState"]


class GuideState:
    """One answer's place in the language of its guide. One thread at a time.

    An id is allowed exactly where its bytes continue some text of the language, however the text is split into ids; an
    end-of-sequence id exactly where the text may end. Allowed ids stay so: a mask is a function of the guide and the
    ids before it.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ended = False

    @property
    def finished(self) -> bool:
        """Nothing but an end-of-sequence id may follow, or one was accepted."""
        return self._ended or self._matcher.is_stopped()

    def clone(self) -> Self:
        """Return an independent state at the same place."""
        copy = type(self)(self._matcher.deep_copy(), self._vocabulary)
        copy._ended = self._ended
        return copy

    def fill_masks(self, drafts: Sequence[int], out: npt.NDArray[np.uint32]) -> int:
        """Write the ids allowed after each beginning of `drafts`, and return how many of the drafts are allowed.

        out: [1 + len(drafts), words] uint32, bit i of word w for id 32 w + i; row j is for the id after drafts[:j].
            Rows after the first draft that is not allowed are left as they are. Words beyond the vocabulary become 0.
        The state stays where it is. Raises RequestError when the guide grew beyond its limits.
        """
        ended, consumed = self._ended, 0
        try:
            for position, row in enumerate(out[: 1 + len(drafts)]):
                self._fill(row)
                if position == len(drafts) or not self._advance(drafts[position]):
                    return position
                consumed += not self._ended
        finally:
            self._ended = ended
            if consumed:
                self._matcher.rollback(consumed)
        return len(drafts)

    def accept(self, token_id: int) -> None:
        """Go on by one id. Raises ValueError when it is not allowed, RequestError when the guide grew too complex."""
        if not self._advance(token_id):
            raise ValueError(f"the guide does not allow the id {token_id} here")

    def _fill(self, row: npt.NDArray[np.uint32]) -> None:
        words = self._vocabulary.eos_mask
        if not self.finished:
            words = np.frombuffer(self._matcher.compute_bitmask(), dtype="<u4")
            # The library hides its errors behind a mask of end-of-sequence ids.
            self._check()
        words = words[: len(row)]  # the library has a word too many where the ids fill their last one
        row[: len(words)] = words
        row[len(words) :] = 0

    def _advance(self, token_id: int) -> bool:
        if token_id in self._vocabulary.eos_token_ids:
            self._ended = self._ended or self._matcher.is_accepting()
            return self._ended
        if self.finished or not 0 <= token_id < self._vocabulary.size:
            return False
        consumed: int = self._matcher.try_consume_tokens([token_id])
        self._check()
        return consumed == 1

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the guide cannot be followed any further: {error_text(self._matcher.get_error())}")
