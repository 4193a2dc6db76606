"""In which order requests of several clients begin."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable

__all__ = ["Beginning", "Beginnings"]

_AT_ONCE = 1  # of a client: takes milliseconds, and two at the same time take twice as long
_LONGEST_S = 0.25
_REMEMBER_S = 10.0  # after its last request a client still counts
_AHEAD = 4  # requests that a client may have begun less than another one, and makes up for
_FEW = 1 / 2  # of the requests that another client has,
_RARELY = 1 / 4  # and of the last beginnings
_LAST = 64
_HOLD_S = 0.025  # that a request of a client with few keeps its place after an Ingress has read it,
_HOLDS = 4  # as long as no more than that many of such requests wait for theirs
_PAUSE_S = 0.002  # that a request of another client keeps it


class _Client:
    """What one client has at this proxy.

    begun: requests that have begun, or more: see `_AHEAD`. requests: all that have not ended.
    beginning: those of them that begin. waiting: those before that.
    """

    def __init__(self) -> None:
        self.last_request = 0.0
        self.begun = 0
        self.requests = 0
        self.beginning = 0
        self.waiting: deque[asyncio.Future[None]] = deque()

    @property
    def order(self) -> tuple[int, int]:
        """Return the sort key, the smallest first."""
        return self.begun, self.requests


class Beginning:
    """A request's place among those that begin, and among all of its client's."""

    def __init__(self, beginnings: "Beginnings", client: _Client) -> None:
        self._beginnings = beginnings
        self._client = client
        self._begins = True
        self._read = False
        self._timer = asyncio.get_running_loop().call_later(_LONGEST_S, self.begun)
        self._ended = False

    def read(self) -> None:
        """Take note that an Ingress has read the request. Idempotent."""
        if self._read or not self._begins:
            return
        self._read = True
        if (seconds := self._beginnings.hold_s(self._client)) > 0:
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(seconds, self.begun)
        else:
            self.begun()

    def begun(self) -> None:
        """Give the place among those that begin back. Idempotent."""
        if self._begins:
            self._begins = False
            self._timer.cancel()
            self._beginnings.leave(self._client)

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
    begun. So while there are several clients, the requests of each begin one after the other, and none while one of a
    client of which fewer have begun begins. A client alone has no limit. A request that takes a quarter of a second, as
    its text is long or its Ingress cannot report, keeps others waiting no longer.

    What follows takes the same processors until the first token. While a client has few requests beside another's many,
    its requests therefore keep their places until their responses begin, for a short time, and those of the other a
    little longer than they need, so that there is capacity when one comes of the client with few. That ends where such
    requests are no longer few: where each sends its next as soon as it has a response, sooner responses make more of
    them. Belongs to one event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: dict[str, _Client] = {}  # the one whose request came last is the last
        self._busy: set[_Client] = set()  # those that have requests that begin, or wait for that
        self._most = 0  # requests of one client that have begun
        self._last: deque[_Client] = deque(maxlen=_LAST)  # whose requests began last

    async def begin(self, name: str) -> Beginning:
        """Wait for a place for a request of a client, and return it."""
        client = self._seen(name)
        client.requests += 1
        self._busy.add(client)
        if self._has_place(client) and (
            self._is_alone() or not any(other.order < client.order for other in self._busy)
        ):
            client.beginning += 1
            return Beginning(self, client)
        place = asyncio.get_running_loop().create_future()
        client.waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            client.requests -= 1
            if not place.cancelled():  # it had just been given the place
                self.leave(client)
            raise
        return Beginning(self, client)

    def hold_s(self, client: _Client) -> float:
        """Return for how long a request of a client's keeps its place after it has been read."""
        if self._is_alone():
            return 0.0
        few = _FEW * max(other.requests for other in self._clients.values())
        begun, often = Counter(self._last), _RARELY * len(self._last)
        with_few = [
            other
            for other in self._clients.values()
            if other.requests <= few and begun[other] <= often and not self._forgets(other)
        ]
        if client not in with_few:
            return _PAUSE_S if with_few else 0.0
        return _HOLD_S if sum(len(other.waiting) for other in with_few) <= _HOLDS else 0.0

    def leave(self, client: _Client) -> None:
        """Give a client's place among those that begin to whoever waits and is next."""
        client.beginning -= 1
        client.begun += 1
        self._last.append(client)
        self._most = max(self._most, client.begun)
        self._give_places()

    def _seen(self, name: str) -> _Client:
        client = self._clients.pop(name, None) or _Client()
        client.last_request = self._clock()
        client.begun = max(client.begun, self._most - _AHEAD)
        self._clients[name] = client
        first, oldest = next(iter(self._clients.items()))
        if self._forgets(oldest) and not oldest.requests:
            del self._clients[first]
        return client

    def _give_places(self) -> None:
        """Let the client that is next begin what it may. As long as requests wait, one begins, which calls this."""
        while self._busy:
            client = min(self._busy, key=lambda client: client.order)
            if not client.beginning and not client.waiting:
                self._busy.discard(client)
            elif not client.waiting or not self._has_place(client):
                return
            else:
                place = client.waiting.popleft()
                if not place.done():
                    place.set_result(None)
                    client.beginning += 1

    def _has_place(self, client: _Client) -> bool:
        return client.beginning < _AT_ONCE or self._is_alone()

    def _is_alone(self) -> bool:
        """Return whether no other client than the one whose request came last has sent one lately."""
        latest = reversed(self._clients.values())
        next(latest)
        other = next(latest, None)
        return other is None or self._forgets(other)

    def _forgets(self, client: _Client) -> bool:
        return client.last_request < self._clock() - _REMEMBER_S
