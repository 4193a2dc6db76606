"""Earlier occurrences of a sequence's end: a hash chain over its n-grams, as in LZ77 compressors."""

from array import array
from collections.abc import Iterable
from typing import NamedTuple

_ID_BITS = 20


class Match(NamedTuple):
    """An earlier occurrence of a sequence's end.

    source: position of the id that followed it there.
    length: ids that the two have in common, `max_length` at most.
    """

    source: int
    length: int


class NgramIndex:
    """The ids of one sequence, and for every run of `min_length` of them the position where that run occurred before.

    Adding an id, and finding the longest match of the end, cost a bounded number of steps however long the sequence
    is: `max_candidates` occurrences are compared, the most recent first, each over `max_length` ids. An index
    holds up to 130 bytes per id.
    """

    def __init__(self, min_length: int = 2, max_length: int = 32, max_candidates: int = 8) -> None:
        if not 1 <= min_length <= max_length or max_candidates < 1:
            raise ValueError(
                f"matches need 1 <= min_length <= max_length and a candidate, got min_length={min_length}, "
                f"max_length={max_length}, max_candidates={max_candidates}"
            )
        self.ids: list[int] = []
        self._min_length, self._max_length, self._max_candidates = min_length, max_length, max_candidates
        self._mask = (1 << _ID_BITS * min_length) - 1
        self._run = 0  # the last min_length ids; larger ids may collide, which the comparison finds
        self._latest: dict[int, int] = {}  # run of ids -> the position after its last occurrence
        self._earlier = array("i", [-1])  # position -> the position after the occurrence before, -1 for none

    def extend(self, ids: Iterable[int]) -> None:
        """Add ids at the end."""
        run, mask, latest, earlier = self._run, self._mask, self._latest, self._earlier
        for position, token in enumerate(ids, start=len(self.ids) + 1):
            self.ids.append(token)
            run = (run << _ID_BITS | token) & mask
            if position < self._min_length:
                earlier.append(-1)
            else:
                earlier.append(latest.get(run, -1))
                latest[run] = position
        self._run = run

    def match(self) -> Match | None:
        """Return the longest earlier occurrence of the end, the most recent of equals; None below `min_length`."""
        best: Match | None = None
        source = self._earlier[len(self.ids)]
        for _ in range(self._max_candidates):
            if source < 0:
                break
            length = self._common(source)
            if length >= self._min_length and (best is None or length > best.length):
                best = Match(source, length)
                if length == self._max_length:
                    break
            source = self._earlier[source]
        return best

    def extended(self, match: Match) -> Match:
        """Return the match after adding the id that it predicted."""
        return Match(match.source + 1, min(match.length + 1, self._max_length))

    def continuation(self, source: int, length: int) -> list[int]:
        """Return `length` ids from `source` on; past the end, the ids since `source` repeat."""
        ids = self.ids[source : source + length]
        while len(ids) < length:
            ids += ids[: length - len(ids)]
        return ids

    def _common(self, source: int) -> int:
        """Return how many ids the sequence before `source` and the end have in common."""
        ids, end, length = self.ids, len(self.ids), 0
        limit = min(source, self._max_length)
        while length < limit and ids[source - 1 - length] == ids[end - 1 - length]:
            length += 1
        return length
