"""The order in which an Ingress replica's requests go to the Generators."""

import asyncio
from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from mpt_serve.engine.request import queue_order

__all__ = ["DispatchQueue"]


class DispatchQueue:
    """Keeps requests until a Generator replica has a place for them, then lets them go as an engine would order them.

    Serve's own queue knows no priorities, so few should ever wait in it. Requests that a lost replica has begun go
    first: somebody reads them already. Lives on one event loop.

    places: requests that may be with Serve at once.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0
        self._arrivals = count()
        self._waiting: list[tuple[bool, int, int, asyncio.Future[None]]] = []

    def resize(self, places: int) -> None:
        """Set the number of places; those who hold one beyond it keep it."""
        self._places = places
        self._let_in()

    @asynccontextmanager
    async def place(self, priority: int, begun: bool) -> AsyncIterator[None]:
        """Hold a place while the context is entered, which waits for one."""
        turn = asyncio.get_running_loop().create_future()
        entry = (not begun, *queue_order(next(self._arrivals), priority), turn)
        insort(self._waiting, entry)
        self._let_in()
        try:
            await turn
            yield
        finally:
            if turn.cancelled():  # left before its turn came
                self._waiting.remove(entry)
            else:
                self._taken -= 1
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._taken < self._places:
            *_, turn = self._waiting[0]
            if turn.cancelled():  # about to remove itself
                break
            del self._waiting[0]
            turn.set_result(None)
            self._taken += 1
