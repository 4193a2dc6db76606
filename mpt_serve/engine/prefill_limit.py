"""How large a step with chunks of prompts may be, so that streams that run beside them do not wait too long."""

from collections.abc import Sequence

from mpt_serve.engine.step_costs import StepCosts

__all__ = ["PrefillLimit"]

_SHARE = 0.7  # of the gap that a step's usual duration may take; what is left is for those that take longer


class PrefillLimit:
    """Limits the tokens of a step, as the last steps of its size have taken.

    sizes: the numbers of tokens that steps are padded to. max_gap_s: seconds between two tokens of a stream.
    """

    def __init__(self, sizes: Sequence[int], max_gap_s: float) -> None:
        self._costs = StepCosts(sizes)
        self._max_gap_s = max_gap_s

    def measured(self, num_tokens: int, seconds: float) -> None:
        """Take note of how long a step took."""
        self._costs.measured(num_tokens, seconds)

    @property
    def tokens(self) -> int | None:
        """Return how many tokens a step may have beside running streams; None as long as nothing is known."""
        if not self._costs.known:
            return None
        limit = self._max_gap_s * _SHARE
        sizes = self._costs.sizes
        return max((size for size in sizes if self._costs.cost(size) <= limit), default=sizes[0])
