"""Which ids a choice may sample next, as bits: bit i of word w stands for id 32 w + i."""

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mpt_serve.engine.sampling_params import SamplingParams

Words = npt.NDArray[np.uint32]


class GuideState(Protocol):
    """How far an answer has come in the language that it must belong to."""

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        """How many of the drafts lead nowhere beyond the guide's limits; asked before `fill_masks`."""

    def fill_masks(self, drafts: Sequence[int], out: Words) -> int:
        """Row j of out [1 + len(drafts), W]: the ids allowed after drafts[:j].

        Returns how many drafts are allowed, one after the other; rows after those are left alone.
        """

    def accept(self, token_id: int) -> None:
        """Take the next id of the answer, which must be allowed."""


def mask_words(vocab_size: int) -> int:
    """Words of a mask."""
    return -(-vocab_size // 32)


def mask_below(limit: int, vocab_size: int) -> Words:
    """A mask of the ids below limit. -> [W]"""
    bits = np.zeros(32 * mask_words(vocab_size), np.uint8)
    bits[:limit] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


class TokenLimits:
    """The masks of one choice: what its guide, allowed_token_ids, bad_words and min_tokens leave.

    Where they leave nothing together, the last that would take away the rest gives way: stop ids below min_tokens
    first, then bad_words, then allowed_token_ids; never the guide.

    possible: [W], the ids that can be sampled at all; one array for all requests.
    """

    def __init__(
        self, params: SamplingParams, stop_ids: Collection[int], possible: Words, guide: GuideState | None = None
    ) -> None:
        self._possible = possible
        self._guide = guide
        self._min_tokens = params.min_tokens
        self._stop_ids = list(stop_ids)
        self._allowed: Words | None = None
        if params.allowed_token_ids is not None:
            self._allowed = possible & ~_without(possible, params.allowed_token_ids)
        self._banned = [word[0] for word in params.bad_words if len(word) == 1]
        self._sequences = [word for word in params.bad_words if len(word) > 1]

    @property
    def binding(self) -> bool:
        """There is anything to mask at all."""
        return self.apply(num_generated=0)

    @property
    def needs_ids(self) -> bool:
        """The mask depends on which ids the answer has so far."""
        return self._guide is not None or bool(self._sequences)

    def apply(self, num_generated: int) -> bool:
        """Whether there is anything to mask after so many ids."""
        bound = self.needs_ids or self._allowed is not None or bool(self._banned)
        return bound or (num_generated < self._min_tokens and bool(self._stop_ids))

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        """How many guesses of the next ids can have masks. What the others lead to must not end the answer."""
        return len(drafts) if self._guide is None else self._guide.count_verifiable(drafts)

    def accept(self, token_id: int) -> None:
        """Take the next id of the answer."""
        if self._guide is not None:
            self._guide.accept(token_id)

    def fill(self, num_generated: int, output_ids: Sequence[int], drafts: Sequence[int], out: Words) -> None:
        """Fill out [1 + len(drafts), W]: row j for the id after `drafts[:j]`.

        num_generated counts the ids before the drafts; output_ids are those ids (only where `needs_ids`).
        """
        out[:] = self._possible
        if self._guide is not None:
            self._guide.fill_masks(drafts, out)
        longest = max((len(word) for word in self._sequences), default=1) - 1
        context = [*output_ids[len(output_ids) - min(longest, len(output_ids)) :], *drafts]
        known = len(context) - len(drafts)
        for j, row in enumerate(out):
            if self._allowed is not None:
                _narrow(row, row & self._allowed)
            banned = [*self._banned, *self._banned_after(context[: known + j])]
            if banned:
                _narrow(row, _without(row, banned))
            if num_generated + j < self._min_tokens and self._stop_ids:
                _narrow(row, _without(row, self._stop_ids))

    def _banned_after(self, context: list[int]) -> list[int]:
        return [word[-1] for word in self._sequences if tuple(context[1 - len(word) :]) == word[:-1]]


def _without(row: Words, ids: Sequence[int]) -> Words:
    """A copy of row [W] without these ids; ids beyond it are nothing to it."""
    row = row.copy()
    places = np.array([i for i in ids if i < 32 * len(row)], np.int64)
    np.bitwise_and.at(row, places >> 5, ~(np.uint32(1) << (places & 31).astype(np.uint32)))
    return row


def _narrow(row: Words, narrower: Words) -> None:
    """Replace a row, unless nothing would be left."""
    if narrower.any():
        row[:] = narrower
