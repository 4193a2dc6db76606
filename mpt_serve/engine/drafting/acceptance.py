"""How often the guesses for one request are right."""

from bisect import bisect_right
from collections.abc import Iterable

# Lower ends of the classes of match lengths, and how often the id after such a match is right in ordinary text.
_CLASSES = (1, 2, 3, 4, 6, 9, 16)
_PRIOR_RATES = (0.1, 0.2, 0.35, 0.5, 0.6, 0.75, 0.85)
# A prior weighs as much as so many guesses, and each guess makes those before it count less: a request's text changes.
_PRIOR_WEIGHT = 2.0
_MEMORY = 0.9


class AcceptanceRates:
    """Probability that the next id is the guessed one, by the length of the match that the guess comes from.

    Long matches are copies, short ones mostly chance: each class of lengths learns its own rate, starting from a prior.
    """

    def __init__(self) -> None:
        self._rates = list(_PRIOR_RATES)
        self._hits = [_PRIOR_WEIGHT * rate for rate in _PRIOR_RATES]
        self._guesses = [_PRIOR_WEIGHT] * len(_CLASSES)

    def rate(self, length: int) -> float:
        return self._rates[bisect_right(_CLASSES, length) - 1]

    def observe(self, length: int, hit: bool) -> None:
        """A guess after a match of `length` >= 1 ids was right or wrong."""
        i = bisect_right(_CLASSES, length) - 1
        self._hits[i] = _MEMORY * self._hits[i] + hit
        self._guesses[i] = _MEMORY * self._guesses[i] + 1
        self._rates[i] = self._hits[i] / self._guesses[i]

    def survivals(self, lengths: Iterable[int]) -> list[float]:
        """Probability that each of a draft's ids is accepted, that is, that it and all before it are right."""
        survivals, survival = [], 1.0
        for length in lengths:
            survival *= self.rate(length)
            survivals.append(survival)
        return survivals
