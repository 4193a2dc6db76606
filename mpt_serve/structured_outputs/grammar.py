"""Compiled grammars, and the state of one output in its grammar: which ids may come next."""

import threading
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.matcher import error_text
from mpt_serve.structured_outputs.vocabulary import Vocabulary

__all__ = ["CompiledGrammar", "GrammarState"]

Words = npt.NDArray[np.uint32]


class CompiledGrammar:
    """The grammar of one request: makes the states of its outputs. Thread-safe.

    The states share the tables that the library fills as it meets new text. No two requests share any: what is too
    complex for one must not end another.
    """

    def __init__(self, initial: "GrammarState") -> None:
        self._initial = initial
        self._lock = threading.Lock()

    def start(self) -> "GrammarState":
        """Return a state for one output, before its first id."""
        with self._lock:
            return self._initial.clone()


class GrammarState:
    """How far one output has advanced in its grammar. Not thread-safe.

    An id is allowed exactly if its bytes continue some text of the language, however the text is split into ids; an
    end-of-sequence id exactly if the text may end. A mask is a function of the grammar and the ids before it.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ended = False
        self._seen: tuple[tuple[int, ...], list[Words]] = (), []  # drafts examined from here, and their masks

    @property
    def finished(self) -> bool:
        """Return whether only an end-of-sequence id may follow, or one was accepted."""
        return self._ended or self._matcher.is_stopped()

    def clone(self) -> Self:
        """Return an independent copy."""
        copy = type(self)(self._matcher.deep_copy(), self._vocabulary)
        copy._ended = self._ended
        return copy

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        """Return how many of the drafts can be verified: those before the first that exceeds the grammar's limits.

        Drafts are guesses: an output that continues otherwise must not end because of one. Drafts from the first that
        is not allowed on are counted, since their verification ends there anyway. The masks that this computes are kept
        for `fill_masks`.
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
        """Write the ids allowed after each prefix of `drafts`, and return how many of the drafts are allowed.

        out: [1 + len(drafts), words] uint32, bit i of word w for id 32 w + i; row j is for the id after drafts[:j].
            Rows after the first draft that is not allowed are left unchanged. Words beyond the vocabulary become 0.
        The state does not change. Raises RequestError if the grammar exceeds its limits, here or after a draft.
        """
        seen, masks = self._seen
        if not masks or seen[: len(drafts)] != tuple(drafts):
            masks = list(self._masks_after(drafts))
        masks = masks[: 1 + len(drafts)]
        for row, mask in zip(out, masks, strict=False):
            words = mask[: len(row)]  # the library has a word too many if the ids fill their last one
            row[: len(words)] = words
            row[len(words) :] = 0
        return len(masks) - 1

    def accept(self, token_id: int) -> None:
        """Advance by one id. Raises ValueError if it is not allowed, RequestError if the grammar exceeds its limits."""
        self._seen = (), []
        if not self._advance(token_id):
            raise ValueError(f"the grammar does not allow the id {token_id} here")

    def _masks_after(self, drafts: Sequence[int]) -> Iterator[Words]:
        """Yield the mask here, and after each draft up to the first that is not allowed. Raises RequestError.

        A copy follows the drafts: a matcher that has exceeded a limit is unusable, and cannot be rolled back.
        """
        yield self._mask()
        ahead = self.clone() if drafts else self
        for draft in drafts:
            if not ahead._advance(draft):
                return
            yield ahead._mask()

    def _mask(self) -> Words:
        """Return the ids allowed here, as the library's words: [at least ceil(size / 32)], read-only."""
        self._check()  # or a failed matcher would look like one that has finished
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
            raise RequestError(
                f"the output cannot follow its grammar any further: {error_text(self._matcher.get_error())}"
            )
