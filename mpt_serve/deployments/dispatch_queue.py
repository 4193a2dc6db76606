"""The order in which an Ingress replica's requests go to the Generators."""

import asyncio
from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from mpt_serve.engine.request import queue_order

__all__ = ["DispatchQueue"]


class DispatchQueue:
    """Keeps requests until a Generator replica has capacity for them, then dispatches them in the order of an engine.

    Serve's own queue knows no priorities, so few requests should ever wait in it. Requests that were running on a lost
    replica go first: their clients have begun to read. Belongs to one event loop.

    capacity: requests that may be with Serve at the same time.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._dispatched = 0
        self._arrivals = count()
        self._waiting: list[tuple[bool, int, int, asyncio.Future[None]]] = []

    def resize(self, capacity: int) -> None:
        """Set the capacity; requests that were dispatched beyond it stay so."""
        self._capacity = capacity
        self._dispatch()

    @asynccontextmanager
    async def slot(self, priority: int, begun: bool) -> AsyncIterator[None]:
        """Wait for a slot, and hold it while the context is entered."""
        turn = asyncio.get_running_loop().create_future()
        entry = (not begun, *queue_order(next(self._arrivals), priority), turn)
        insort(self._waiting, entry)
        self._dispatch()
        try:
            await turn
            yield
        finally:
            if turn.cancelled():  # it left before its turn came
                self._waiting.remove(entry)
            else:
                self._dispatched -= 1
            self._dispatch()

    def _dispatch(self) -> None:
        while self._waiting and self._dispatched < self._capacity:
            *_, turn = self._waiting[0]
            if turn.cancelled():  # about to remove itself
                break
            del self._waiting[0]
            turn.set_result(None)
            self._dispatched += 1
