"""The cost of a step by its number of tokens, as measured while serving."""

import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

# A step's time grows by this share of a one-token step's with each further token, until there are measurements.
_PRIOR_SLOPE = 0.06
_WINDOW = 7  # measurements of a size that count
_RELIABLE = 3  # with fewer measurements the estimate takes part
_EXPIRY = 512  # steps after which a size is measured again, so that an outlier excludes no size for good


class StepCosts:
    """Durations of an engine's step sizes: a step of 5 tokens that is padded to 8 costs as much as one of 8.

    A size costs the median of its last measurements. One without measurements is estimated from the nearest size that
    has some. Steps differ in more than their tokens (context lengths, noise), hence the short window.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sorted(set(sizes)))
        if not self.sizes or self.sizes[0] < 1:
            raise ValueError(f"step sizes must be one or more numbers of tokens, each at least 1, got {list(sizes)}")
        self._seconds: dict[int, deque[float]] = {}
        self._measured_at: dict[int, int] = {}
        self._steps = 0

    @property
    def known(self) -> bool:
        """Return whether costs are in seconds: something has been measured."""
        return bool(self._seconds)

    def padded(self, num_tokens: int) -> int:
        """Return the size that a step of num_tokens tokens is padded to; beyond the largest size, the number itself."""
        i = bisect_left(self.sizes, num_tokens)
        return self.sizes[i] if i < len(self.sizes) else num_tokens

    def measured(self, num_tokens: int, seconds: float) -> None:
        """Take note of how long a step of num_tokens tokens took."""
        size = self.padded(num_tokens)
        self._steps += 1
        self._seconds.setdefault(size, deque(maxlen=_WINDOW)).append(seconds)
        self._measured_at[size] = self._steps
        for old in [other for other, at in self._measured_at.items() if self._steps - at > _EXPIRY]:
            del self._seconds[old], self._measured_at[old]

    def has_measured(self, size: int) -> bool:
        """Return whether the cost of this size is known from measurements."""
        return size in self._seconds

    def cost(self, num_tokens: int) -> float:
        """Return the cost of a step, to be compared with other costs of the same moment (seconds, once `known`)."""
        size = self.padded(num_tokens)
        own = list(self._seconds.get(size, ()))
        others = [other for other in self._seconds if other != size]
        if len(own) >= _RELIABLE or (own and not others):
            return statistics.median_low(own)
        if not others:
            return _prior(size)
        nearest = min(others, key=lambda other: abs(_prior(other) - _prior(size)))
        estimate = statistics.median_low(self._seconds[nearest]) * _prior(size) / _prior(nearest)
        return statistics.median_low([estimate, *own])


def _prior(size: int) -> float:
    return 1 + _PRIOR_SLOPE * (size - 1)
