"""What followed in the outputs of requests that have ended: others may generate the same."""

from collections import deque
from collections.abc import Iterable, Sequence

from mpt_serve.engine.request import Request

__all__ = ["PastFollower", "PastOutputs"]

_CONTEXTS = (8, 4, 2)  # ids that a prediction depends on: as many as are known
_LONGEST = _CONTEXTS[0]
_ID_BITS = 20
_MASKS = tuple((1 << _ID_BITS * length) - 1 for length in _CONTEXTS)
# A context as a key: its ids, and a bit above them that tells contexts of different lengths apart.
_MARKS = tuple(1 << _ID_BITS * length for length in _CONTEXTS)
_MOST = 255  # that is counted of a context
_IDS_PER_CALL = 256  # that one call counts: less than a millisecond
_TOTALS, _SHARES = 4, 5  # classes of predictions, by how much is known of the context and how clear that is
_MEMORY = 4096  # predictions of a kind after which those before them count half
_SMALLEST_SURVIVAL = 0.05  # of drafts: an id that is less probable is hardly ever worth a place in a step


class PastOutputs:
    """Counts of what followed each context of 2, 4 and 8 ids in the outputs that ended last.

    Of each context one id is kept, its majority over the others that followed (the algorithm of Boyer and Moore), and
    their number. These say how far to trust it: the rates of each kind of prediction are learned from all requests.

    Requests with a cache salt have no part in this: what comes at once tells whether others had the same.

    capacity: ids to keep at most, in two halves: where an output does not fit into the newer one, that replaces the
    older one. An id takes some 200 bytes in ordinary text, and 400 at most.
    """

    def __init__(self, capacity: int) -> None:
        self._half = capacity // 2
        self._recent: dict[int, int] = {}  # context -> id, majority and number as bits of one number
        self._older = self._recent
        self._num_recent = 0
        self._uncounted: deque[tuple[int, list[int]]] = deque()  # outputs, each with the context before it
        self._num_uncounted = 0
        kinds = len(_CONTEXTS) * _TOTALS * _SHARES
        self._hits, self._observed = [1.0] * kinds, [3.0] * kinds

    def add(self, request: Request) -> None:
        """Add the output of a request, or its beginning if it is longer than half the capacity; `count` reads it."""
        ids = request.output_ids[: self._half]
        self._uncounted.append((context_of(request.prompt_ids[-_LONGEST:]), ids))
        self._num_uncounted += len(ids)
        while self._num_uncounted > self._half:
            self._num_uncounted -= len(self._uncounted.popleft()[1])

    def count(self) -> None:
        """Count a part of what was added, so that no step waits for long outputs."""
        left = _IDS_PER_CALL
        while self._uncounted and left > 0:
            context, ids = self._uncounted.popleft()
            now, later = ids[:left], ids[left:]
            if self._num_recent + len(now) > self._half:
                self._recent, self._older, self._num_recent = {}, self._recent, 0
            context = self._counted(context, now)
            self._num_recent += len(now)
            self._num_uncounted -= len(now)
            left -= len(now)
            if later:
                self._uncounted.appendleft((context, later))

    def _counted(self, context: int, ids: Iterable[int]) -> int:
        """Count ids after a context, and return the context after them."""
        recent = self._recent
        for token in ids:
            for mask, mark in zip(_MASKS, _MARKS, strict=True):
                key = context & mask | mark
                recent[key] = _after_another(recent.get(key), token)
            context = _extended(context, token)
        return context

    def predict(self, context: int) -> tuple[int, int]:
        """Return the id that followed a context of `context_of`, and the kind of this prediction.

        Both are -1 where nothing is known of the last two ids.
        """
        recent, older = self._recent, self._older
        for i, (mask, mark) in enumerate(zip(_MASKS, _MARKS, strict=True)):
            key = context & mask | mark
            known = recent.get(key) or older.get(key)
            if known is not None:
                majority, total = known >> 8 & 0xFF, known & 0xFF
                share = (_SHARES - 1) * majority // total
                return known >> 16, (i * _TOTALS + min(total, _TOTALS) - 1) * _SHARES + share
        return -1, -1

    def rate(self, kind: int) -> float:
        """Return how often predictions of a kind were right; 0 for -1."""
        return 0.0 if kind < 0 else self._hits[kind] / self._observed[kind]

    def observe(self, kind: int, hit: bool) -> None:
        """Take note that a prediction of a kind was right or wrong."""
        self._hits[kind] += hit
        self._observed[kind] += 1
        if self._observed[kind] > _MEMORY:
            self._hits[kind] /= 2
            self._observed[kind] /= 2


class PastFollower:
    """One request's way through past outputs. rate: the probability of the next id that they predict; 0 without one."""

    def __init__(self, past: PastOutputs, prompt_ids: Sequence[int]) -> None:
        self._past = past
        self._context = context_of(prompt_ids[-_LONGEST:])
        self._next, self._kind = past.predict(self._context)
        self.rate = past.rate(self._kind)

    def advance(self, token: int) -> None:
        """Add an id."""
        past = self._past
        if self._kind >= 0:
            past.observe(self._kind, token == self._next)
        self._context = _extended(self._context, token)
        self._next, self._kind = past.predict(self._context)
        self.rate = past.rate(self._kind)

    def survivals(self, count: int) -> list[float]:
        """Return the probability that each of the next ids is right, with all before it; as far as that is worth it."""
        return self._walk(count)[1]

    def ids(self, count: int) -> list[int]:
        """Return these ids."""
        return self._walk(count)[0]

    def _walk(self, count: int) -> tuple[list[int], list[float]]:
        past, context = self._past, self._context
        token, kind = self._next, self._kind
        survival = 1.0
        ids: list[int] = []
        survivals: list[float] = []
        while len(ids) < count and (survival := survival * past.rate(kind)) >= _SMALLEST_SURVIVAL:
            ids.append(token)
            survivals.append(survival)
            context = _extended(context, token)
            token, kind = past.predict(context)
        return ids, survivals


def context_of(ids: Iterable[int]) -> int:
    """Return the context after ids: the last `_LONGEST`, as bits of one number."""
    context = 0
    for token in ids:
        context = _extended(context, token)
    return context


def _extended(context: int, token: int) -> int:
    return (context << _ID_BITS | token + 1) & _MASKS[0]  # 0 stands before the first id


def _after_another(known: int | None, token: int) -> int:
    """Return what is kept of a context after another id has followed it."""
    if known is None:
        return token << 16 | 1 << 8 | 1
    first, majority, total = known >> 16, known >> 8 & 0xFF, known & 0xFF
    total = min(total + 1, _MOST)
    if token == first:
        majority = min(majority + 1, total)
    elif majority > 1:
        majority -= 1
    else:
        first = token
    return first << 16 | majority << 8 | total
