"""The ids that a choice may sample next, as bit masks: bit i of word w stands for id 32 w + i."""

import copy
from collections.abc import Collection, Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from mpt_serve.engine.sampling_params import SamplingParams

Words = npt.NDArray[np.uint32]


class GrammarState(Protocol):
    """The position of one output in the language of its grammar.

    `fill_masks` and `accept` raise `RequestError` to end the output with an error that its client sees.
    """

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        """Return how many draft tokens stay within the grammar's limits of work; called before `fill_masks`."""

    def fill_masks(self, drafts: Sequence[int], out: Words) -> int:
        """Write the ids allowed after drafts[:j] into row j of out [1 + len(drafts), W].

        Returns how many drafts are allowed, one after the other; rows after those are left alone.
        """

    def accept(self, token_id: int) -> None:
        """Advance by the next id of the output. Raises `ValueError` when it is not allowed."""


class Grammar(Protocol):
    """A compiled grammar, whoever compiled it. Threads may share one."""

    def start(self) -> GrammarState:
        """Return the state of one output before its first id."""


def mask_words(vocab_size: int) -> int:
    """Return the number of words in a mask."""
    return -(-vocab_size // 32)


def mask_below(limit: int, vocab_size: int) -> Words:
    """Return a mask of the ids below limit, [W]."""
    return _mask_of(range(limit), mask_words(vocab_size))


class TokenMasks:
    """The masks of one choice: what its grammar, allowed_token_ids, bad_words and min_tokens leave.

    All choices of a request without a grammar share one instance.

    Where nothing is left by all of them together, the last restriction that would remove every id is dropped: stop ids
    below min_tokens first, then bad_words, then allowed_token_ids; never the grammar.

    possible: [W], the ids that can be sampled at all; one array for all requests.
    """

    def __init__(self, params: SamplingParams, stop_ids: Collection[int], possible: Words) -> None:
        self._possible = possible
        self._grammar: GrammarState | None = None
        self._min_tokens = params.min_tokens
        self._sequences = [word for word in params.bad_words if len(word) > 1]
        banned = [word[0] for word in params.bad_words if len(word) == 1]
        # Lists may name every id, so they become masks once; choices share these read-only arrays.
        self._allowed = self._shared(params.allowed_token_ids)
        self._banned = self._shared(banned or None)
        self._stops = self._shared(stop_ids or None) if self._min_tokens else None

    def with_grammar(self, state: GrammarState) -> Self:
        """Return a copy for one choice, whose output must also match a grammar."""
        choice = copy.copy(self)
        choice._grammar = state
        return choice

    @property
    def binding(self) -> bool:
        """Return whether there is anything to mask at all."""
        return self.apply(num_generated=0)

    @property
    def needs_ids(self) -> bool:
        """Return whether the mask depends on the ids of the output so far."""
        return self._grammar is not None or bool(self._sequences)

    def apply(self, num_generated: int) -> bool:
        """Return whether there is anything to mask after num_generated ids."""
        bound = self.needs_ids or self._allowed is not None or self._banned is not None
        return bound or (num_generated < self._min_tokens and self._stops is not None)

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        """Return how many draft tokens can have masks. A wrong draft beyond those must not end the output."""
        return len(drafts) if self._grammar is None else self._grammar.count_verifiable(drafts)

    def accept(self, token_id: int) -> None:
        """Advance by the next id of the output."""
        if self._grammar is not None:
            self._grammar.accept(token_id)

    def fill(self, num_generated: int, output_ids: Sequence[int], drafts: Sequence[int], out: Words) -> None:
        """Fill out [1 + len(drafts), W]: row j for the id after `drafts[:j]`.

        num_generated counts the ids before the drafts; output_ids are those ids (only where `needs_ids`).
        """
        out[:] = self._possible
        if self._grammar is not None:
            self._grammar.fill_masks(drafts, out)
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
        """Return the ids that would complete a bad word, [W]; None for none."""
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
    """Return a mask [words] of these ids, without those beyond its last bit."""
    bits = np.zeros(32 * words, np.uint8)
    positions = np.fromiter(ids, np.int64, len(ids))
    bits[positions[positions < len(bits)]] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


def _narrow(row: Words, narrower: Words) -> None:
    """Replace a row, unless no id would be left."""
    if narrower.any():
        row[:] = narrower
