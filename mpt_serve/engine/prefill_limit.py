"""How large a step with chunks of prompts may be, so that streams that run beside them do not wait too long."""

from collections.abc import Sequence

from mpt_serve.engine.step_costs import StepCosts
from mpt_serve.engine.step_rows import StepRows
from mpt_serve.engine.token_budget import MIN_PROMPT_TOKENS, PromptLimits

__all__ = ["PrefillLimit"]

_SHARE = 0.7  # of the gap that a step's usual duration may take; what is left is for those that take longer

# What a step in the background may take, as a multiple of one token's: whoever comes waits for it.
_BACKGROUND = 1.25
_HARDLY_MORE = 1.1  # what a step with rows for hidden states may take, as a multiple of one without
_SELDOM = 256  # steps of which one may take longer for them: less than one of 100, so that the p99 of gaps stays
_LARGE = 128  # tokens that make such a step worth it

_REMEMBERED = 256  # steps after the last with an expedited request, while the next one may come at any moment
_BESIDE_EXPEDITED = 3  # what a step with prompts of others may then take, as a multiple of one without


class PrefillLimit:
    """Limits the tokens of a step, as the last steps of its size have taken.

    sizes: the numbers of tokens that steps are padded to. max_gap_s: seconds between two tokens of a stream.
    """

    def __init__(self, sizes: Sequence[int], max_gap_s: float) -> None:
        self._costs = StepCosts(sizes)
        self._max_gap_s = max_gap_s
        self._since_pooled = _SELDOM  # steps since the last with rows for hidden states
        self._since_expedited = _REMEMBERED  # steps since the last with rows of expedited requests

    def measured(self, num_tokens: int, seconds: float) -> None:
        """Take note of how long a step took."""
        self._costs.measured(num_tokens, seconds)

    def scheduled(self, step: StepRows) -> None:
        """Take note of what the next step computes."""
        expedited = any(row.request.params.expedited for row in step.rows)
        self._since_expedited = 0 if expedited else min(self._since_expedited + 1, _REMEMBERED)
        if any(row.request.pooled is not None for row in step.rows):
            self._since_pooled = 0
        elif step.num_samples:
            self._since_pooled += 1

    def beside(self, num_tokens: int) -> PromptLimits:
        """Return the limits of prompts in a step whose decode rows have num_tokens tokens."""
        tokens = self.tokens
        if tokens is None:
            return PromptLimits()
        # Some tokens of prompts go in in any case; those that fill the step up to its padded size cost nothing more.
        tokens = max(tokens, self._costs.padded(num_tokens + MIN_PROMPT_TOKENS))
        return PromptLimits(tokens, self._pooled(num_tokens, tokens), self._beside_expedited(num_tokens))

    def background(self, num_tokens: int) -> int:
        """Return how many tokens a step may have together with rows in the background, where others have num_tokens.

        Beside others none: on CPUs even the rows that steps are padded with take time. Alone such steps are short.
        """
        if num_tokens:
            return num_tokens
        costs = self._costs
        most = _BACKGROUND * costs.cost(1)
        return max((size for size in costs.sizes if costs.cost(size) <= most), default=costs.sizes[0])

    def _pooled(self, num_tokens: int, tokens: int) -> int | None:
        """Return the limit of prompts whose hidden states are wanted, None for that of all prompts.

        In every step they have what costs running streams hardly any time. Where that is nothing, they have one large
        step from time to time, or a few tokens in every step where large ones would take too long.
        """
        costs = self._costs
        padded = costs.padded(num_tokens)
        larger = [size for size in costs.sizes if size > padded]
        most = costs.cost(num_tokens) * _HARDLY_MORE
        cheap = max((size for size in larger if costs.cost(size) <= most), default=padded)
        if cheap > padded or not larger:
            return cheap
        if tokens - num_tokens < _LARGE:
            return larger[0]
        if self._since_pooled < _SELDOM:
            return padded
        return None if costs.has_measured(larger[0]) else larger[0]

    def _beside_expedited(self, num_tokens: int) -> int | None:
        """Return the limit of prompts that are not expedited, while others are; None for that of all prompts.

        An expedited request waits for the step that runs when it comes. So that their own prompts advance, such steps
        have the next size above that of their decode rows in any case.
        """
        if self._since_expedited >= _REMEMBERED:
            return None
        costs = self._costs
        padded = costs.padded(num_tokens)
        larger = [size for size in costs.sizes if size > padded]
        most = costs.cost(num_tokens) * _BESIDE_EXPEDITED
        return max((size for size in larger if size == larger[0] or costs.cost(size) <= most), default=padded)

    @property
    def tokens(self) -> int | None:
        """Return how many tokens a step may have beside running streams; None as long as nothing is known."""
        if not self._costs.known:
            return None
        limit = self._max_gap_s * _SHARE
        sizes = self._costs.sizes
        return max((size for size in sizes if self._costs.cost(size) <= limit), default=sizes[0])
