"""How many requests of one client begin at the same time, where others send fewer."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Beginning", "Beginnings"]

_AT_ONCE = 1  # takes milliseconds, beside what other clients have there
_LONGEST_S = 1.0
_REMEMBER_S = 10.0  # after its last request a client still counts


class _Client:
    """What one client has at this proxy.

    requests: all that have not ended. beginning: those of them that no Ingress has read. waiting: those before that.
    """

    def __init__(self) -> None:
        self.last_request = 0.0
        self.requests = 0
        self.beginning = 0
        self.waiting: deque[asyncio.Future[None]] = deque()

    def leave(self) -> None:
        """Give a place among those that begin back, to the next that waits if there is one."""
        self.beginning -= 1
        while self.waiting and self.beginning < _AT_ONCE:
            place = self.waiting.popleft()
            if not place.done():
                place.set_result(None)
                self.beginning += 1


class Beginning:
    """A request's place among those that begin, and among all of its client's."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._begins = True
        self._timer = asyncio.get_running_loop().call_later(_LONGEST_S, self.begun)
        self._ended = False

    def begun(self) -> None:
        """Give the place among those that begin back. Idempotent."""
        if self._begins:
            self._begins = False
            self._timer.cancel()
            self._client.leave()

    def end(self) -> None:
        """Count the request no longer. Idempotent."""
        self.begun()
        if not self._ended:
            self._ended = True
            self._client.requests -= 1


class Beginnings:
    """Requests between this proxy and the moment that an Ingress has read them and only generates.

    That takes more of a processor than anything but generating, in several processes, all of whose event loops treat
    all requests alike. A client that sends many at once would therefore delay those of others until all of its own have
    begun. So a client's requests begin one after the other as long as another has fewer; the one with fewest is not
    limited, and neither is one alone. A request that takes a second, as its text is long or its Ingress cannot report,
    keeps the next waiting no longer. Belongs to one event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: dict[str, _Client] = {}  # the one whose request came last is the last

    async def begin(self, name: str) -> Beginning:
        """Wait for a place for a request of a client, and return it."""
        client = self._seen(name)
        client.requests += 1
        if client.beginning < _AT_ONCE or not self._has_more_than_others(client):
            client.beginning += 1
            return Beginning(client)
        place = asyncio.get_running_loop().create_future()
        client.waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            client.requests -= 1
            if not place.cancelled():  # it had just been given the place
                client.leave()
            raise
        return Beginning(client)

    def _seen(self, name: str) -> _Client:
        client = self._clients.pop(name, None) or _Client()
        client.last_request = self._clock()
        self._clients[name] = client
        first, oldest = next(iter(self._clients.items()))
        if oldest.last_request < client.last_request - _REMEMBER_S and not oldest.requests:
            del self._clients[first]
        return client

    def _has_more_than_others(self, client: _Client) -> bool:
        """Return whether another client that has sent a request lately has fewer."""
        for other in reversed(self._clients.values()):
            if other.last_request < client.last_request - _REMEMBER_S:
                return False
            if other.requests < client.requests:
                return True
        return False
