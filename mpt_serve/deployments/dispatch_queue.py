"""The order in which an Ingress replica's requests go to the Generators."""

import asyncio
import time
from bisect import insort
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

from mpt_serve.deployments.fair_shares import FairShares, Share
from mpt_serve.engine.request import queue_order

__all__ = ["DispatchQueue", "Slot"]


class Slot:
    """One request's place among those that are dispatched.

    expedited: whether its client has had less than others that have requests too.
    """

    def __init__(self, share: Share, expedited: bool) -> None:
        self.charge = share.charge_output  # takes the number of tokens generated
        self.expedited = expedited


class _Waiting:
    """One request that waits, and what sorts it: those that had begun first, then as an engine does."""

    def __init__(self, begun: bool, order: tuple[int, int], share: Share, choices: int, prompt_tokens: int) -> None:
        self.begun = begun
        self.order = (not begun, *order)
        self.share = share
        self.choices = choices
        self.prompt_tokens = prompt_tokens
        self.expedited = False
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __lt__(self, other: "_Waiting") -> bool:
        return self.order < other.order


class DispatchQueue:
    """Keeps requests until a Generator replica has capacity for them, then dispatches them in the order of an engine.

    Serve's own queue knows no priorities, so few requests should ever wait in it. Requests that were running on a lost
    replica go first: their clients have begun to read. Several clients have turns by what each has had (`FairShares`),
    and priorities order the requests of each. Belongs to one event loop.

    capacity: requests that may be with Serve at the same time: twice those that run, so that no sequence is ever idle.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity
        self._dispatched = 0
        self._arrivals = count()
        self._shares = FairShares(clock)
        self._waiting: dict[Share, list[_Waiting]] = {}  # of each client, in order

    @property
    def num_waiting(self) -> int:
        """Return how many requests wait."""
        return sum(map(len, self._waiting.values()))

    def resize(self, capacity: int) -> None:
        """Set the capacity; requests that were dispatched beyond it stay so."""
        self._capacity = capacity
        self._dispatch()

    @asynccontextmanager
    async def slot(
        self, priority: int, begun: bool, client: str = "", choices: int = 1, prompt_tokens: int = 0
    ) -> AsyncIterator[Slot]:
        """Wait for a slot, and hold it while the context is entered.

        client: whose request it is. choices: that it generates. prompt_tokens: that are computed for it.
        """
        share = self._shares.arrive(client, choices)
        entry = _Waiting(begun, queue_order(next(self._arrivals), priority), share, choices, prompt_tokens)
        insort(self._waiting.setdefault(share, []), entry)
        self._dispatch()
        try:
            await entry.turn
            yield Slot(share, entry.expedited)
        finally:
            if entry.turn.cancelled():  # it left before its turn came
                self._forget(entry)
            else:
                self._dispatched -= 1
            self._shares.leave(share, choices, started=not entry.turn.cancelled())
            self._dispatch()

    def _dispatch(self) -> None:
        while self._dispatched < self._capacity and (entry := self._next()) is not None:
            if entry.turn.cancelled():  # about to remove itself
                break
            self._forget(entry)
            entry.expedited = self._shares.is_behind(entry.share, entry.choices, self._capacity // 2)
            self._shares.start(entry.share, entry.choices, entry.prompt_tokens)
            entry.turn.set_result(None)
            self._dispatched += 1

    def _next(self) -> _Waiting | None:
        """Return the request that is dispatched next, None if none may be."""
        running = self._capacity // 2
        first = [
            entries[0]
            for share, entries in self._waiting.items()
            if entries[0].begun or self._shares.may_start(share, entries[0].choices, running)
        ]
        return min(first, key=lambda entry: (entry.order[0], entry.share.counter, entry.order), default=None)

    def _forget(self, entry: _Waiting) -> None:
        entries = self._waiting[entry.share]
        entries.remove(entry)
        if not entries:
            del self._waiting[entry.share]
