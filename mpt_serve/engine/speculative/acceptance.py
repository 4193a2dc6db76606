"""The acceptance rates of one request's drafts."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping

# How often the id after a match of at least this many ids is right in ordinary text.
_PRIOR_RATES = {1: 0.1, 2: 0.2, 3: 0.35, 4: 0.5, 6: 0.6, 9: 0.75, 16: 0.85}
# The weight of a prior in observations. Each observation makes those before it count less: a request's text changes.
_PRIOR_WEIGHT = 2.0
_MEMORY = 0.9


class AcceptanceRates:
    """The probability that the next id is the drafted one, by the length of the match that the draft comes from.

    Long matches are copies, short ones mostly chance: each class of lengths learns its own rate, starting from a prior.
    """

    def __init__(self, priors: Mapping[int, float] = _PRIOR_RATES) -> None:
        """Start from priors: rates by the smallest length of each class; the first length is 1."""
        self._classes = tuple(priors)
        self._rates = list(priors.values())
        self._hits = [_PRIOR_WEIGHT * rate for rate in self._rates]
        self._observed = [_PRIOR_WEIGHT] * len(self._rates)

    def rate(self, length: int) -> float:
        """Return the rate after a match of `length` >= 1 ids."""
        return self._rates[bisect_right(self._classes, length) - 1]

    def observe(self, length: int, hit: bool) -> None:
        """Take note that a draft token after a match of `length` >= 1 ids was right or wrong."""
        i = bisect_right(self._classes, length) - 1
        self._hits[i] = _MEMORY * self._hits[i] + hit
        self._observed[i] = _MEMORY * self._observed[i] + 1
        self._rates[i] = self._hits[i] / self._observed[i]

    def survivals(self, lengths: Iterable[int]) -> list[float]:
        """Return the probability that each id of a draft is accepted, that is, that it and all before it are right."""
        survivals, survival = [], 1.0
        for length in lengths:
            survival *= self.rate(length)
            survivals.append(survival)
        return survivals
