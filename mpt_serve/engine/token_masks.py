"""Which ids a choice may sample next, as bits: bit i of word w stands for id 32 w + i."""

import copy
from collections.abc import Collection, Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from mpt_serve.engine.sampling_params import SamplingParams

Words = npt.NDArray[np.uint32]


class GrammarState(Protocol):
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
    return _mask_of(range(limit), mask_words(vocab_size))


class TokenMasks:
    """The masks of one choice: what its guide, allowed_token_ids, bad_words and min_tokens leave.

    A request without a guide has one for all its choices.

    Where they leave nothing together, the last that would take away the rest gives way: stop ids below min_tokens
    first, then bad_words, then allowed_token_ids; never the guide.

    possible: [W], the ids that can be sampled at all; one array for all requests.
    """

    def __init__(self, params: SamplingParams, stop_ids: Collection[int], possible: Words) -> None:
        self._possible = possible
        self._guide: GrammarState | None = None
        self._min_tokens = params.min_tokens
        self._sequences = [word for word in params.bad_words if len(word) > 1]
        banned = [word[0] for word in params.bad_words if len(word) == 1]
        # Lists may name every id, so they become masks once; choices share these, and nobody writes them.
        self._allowed = self._shared(params.allowed_token_ids)
        self._banned = self._shared(banned or None)
        self._stops = self._shared(stop_ids or None) if self._min_tokens else None

    def with_guide(self, guide: GrammarState | None) -> Self:
        """The same for a choice with a guide of its own."""
        choice = copy.copy(self)
        choice._guide = guide
        return choice

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
        bound = self.needs_ids or self._allowed is not None or self._banned is not None
        return bound or (num_generated < self._min_tokens and self._stops is not None)

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
            banned = self._banned_after(context[: known + j])
            if banned is not None:
                _narrow(row, row & ~banned)
            if num_generated + j < self._min_tokens and self._stops is not None:
                _narrow(row, row & ~self._stops)

    def _banned_after(self, context: list[int]) -> Words | None:
        """The ids that would complete a bad word, [W]; None for none."""
        last = [word[-1] for word in self._sequences if tuple(context[1 - len(word) :]) == word[:-1]]
        if not last:
            return self._banned
        banned = _mask_of(last, len(self._possible))
        return banned if self._banned is None else banned | self._banned

    def _shared(self, ids: Collection[int] | None) -> Words | None:
        if ids is None:
            return None
        mask = _mask_of(ids, len(self._possible))
        mask.flags.writeable = False
        return mask


def _mask_of(ids: Collection[int], words: int) -> Words:
    """A mask of these ids, those beyond it left out. -> [words]"""
    bits = np.zeros(32 * words, np.uint8)
    places = np.fromiter(ids, np.int64, len(ids))
    bits[places[places < len(bits)]] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def _narrow(row: Words, narrower: Words) -> None:
    """Replace a row, unless nothing would be left."""
    if narrower.any():
        row[:] = narrower
