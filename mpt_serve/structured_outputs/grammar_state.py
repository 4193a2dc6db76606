"""Where one answer stands in its guide: which ids may come next."""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.matcher import error_text
from mpt_serve.structured_outputs.vocabulary import Vocabulary

__all__ = ["GrammarState"]

Words = npt.NDArray[np.uint32]


class GrammarState:
    """One answer's place in the language of its guide. One thread at a time.

    An id is allowed exactly where its bytes continue some text of the language, however the text is split into ids; an
    end-of-sequence id exactly where the text may end. Allowed ids stay so: a mask is a function of the guide and the
    ids before it.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ended = False
        self._seen: tuple[tuple[int, ...], list[Words]] = (), []  # drafts looked at from here, and their masks

    @property
    def finished(self) -> bool:
        """Nothing but an end-of-sequence id may follow, or one was accepted."""
        return self._ended or self._matcher.is_stopped()

    def clone(self) -> Self:
        """Return an independent state at the same place."""
        copy = type(self)(self._matcher.deep_copy(), self._vocabulary)
        copy._ended = self._ended
        return copy

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        """Return how many of the drafts can be verified: those before the first that leads beyond the guide's limits.

        Drafts are guesses: an answer that goes another way must not end because of one. Drafts from the first that is
        not allowed on are counted; to verify them ends there by itself. The masks that this takes are kept for
        `fill_masks`.
        """
        masks: list[Words] = []
        count = 0
        try:
            for mask in self._masks_after(drafts):
                masks.append(mask)
            count = len(drafts)
        except RequestError:
            count = max(0, len(masks) - 1)
        self._seen = tuple(drafts[:count]), masks
        return count

    def fill_masks(self, drafts: Sequence[int], out: Words) -> int:
        """Write the ids allowed after each beginning of `drafts`, and return how many of the drafts are allowed.

        out: [1 + len(drafts), words] uint32, bit i of word w for id 32 w + i; row j is for the id after drafts[:j].
            Rows after the first draft that is not allowed are left as they are. Words beyond the vocabulary become 0.
        The state stays where it is. Raises RequestError when the guide grows beyond its limits, here or in a draft.
        """
        seen, masks = self._seen
        if not masks or seen[: len(drafts)] != tuple(drafts):
            masks = list(self._masks_after(drafts))
        masks = masks[: 1 + len(drafts)]
        for row, mask in zip(out, masks, strict=False):
            words = mask[: len(row)]  # the library has a word too many where the ids fill their last one
            row[: len(words)] = words
            row[len(words) :] = 0
        return len(masks) - 1

    def accept(self, token_id: int) -> None:
        """Go on by one id. Raises ValueError when it is not allowed, RequestError when the guide grew too complex."""
        self._seen = (), []
        if not self._advance(token_id):
            raise ValueError(f"the guide does not allow the id {token_id} here")

    def _masks_after(self, drafts: Sequence[int]) -> Iterator[Words]:
        """Yield the mask here, and after each draft up to the first that is not allowed. Raises RequestError.

        A copy follows the drafts: what breaks a limit is of no use any more, and no rolling back mends it.
        """
        yield self._mask()
        ahead = self.clone() if drafts else self
        for draft in drafts:
            if not ahead._advance(draft):
                return
            yield ahead._mask()

    def _mask(self) -> Words:
        """Return the ids allowed here, as words of the library's: [at least ceil(size / 32)], not to be written."""
        self._check()  # or a broken matcher would pass for one that has come to its end
        if self.finished:
            return self._vocabulary.eos_mask
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype="<u4")
        # The library hides its errors behind a mask of end-of-sequence ids.
        self._check()
        return mask

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
