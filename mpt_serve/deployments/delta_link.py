"""The Generator's end of the connections that carry deltas to the Ingresses.

There is one connection to each Ingress that has requests here, and one frame on it for each step of the engine,
written by the engine's own thread: a token costs no switch of tasks or threads, and no message of Serve's. While the
Ingress reads slowly, the deltas of each choice are merged. What comes back on the connection ends requests.
"""

import asyncio
import logging
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable

from mpt_serve.deployments.delta_wire import LinkAddress, Unpacker, encode, merged
from mpt_serve.engine.request import AbortReason, Delta
from mpt_serve.errors import EngineClosedError

__all__ = ["DeltaLink", "DeltaLinks", "LinkedRequest"]

logger = logging.getLogger("ray.serve")

_CONNECT_TIMEOUT_S = 5.0
_RETRY_PAUSE_S = 60.0  # before an Ingress that could not be reached is tried again

# Ends a request in the engine, or one choice of it: takes its id, the choice's index or None, and the reason.
Abort = Callable[[str, int | None, AbortReason], None]


class LinkedRequest:
    """One request whose deltas go over a link.

    ended: done when every choice has finished; fails with EngineClosedError when the link is lost before.
    """

    def __init__(self, link: "DeltaLink", number: int, request_id: str, choices: int) -> None:
        self.request_id = request_id
        self.ended: asyncio.Future[None] = link.loop.create_future()
        self._link = link
        self._number = number
        self._unfinished = choices

    def post(self, delta: Delta) -> None:
        """Take a delta from the engine; thread-safe, never blocks. `flush` of the link sends it."""
        self._link.post(self._number, delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
            if not self._unfinished:
                self._link.call_on_loop(self._end)

    def lose(self) -> None:
        """Fail, since the link is lost."""
        if not self.ended.done():
            self.ended.set_exception(EngineClosedError("the connection to the Ingress was lost"))
            self.ended.exception()  # nobody may await it any more

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class DeltaLink:
    """One connection to an Ingress. `post` and `flush` belong to any thread, all else to the event loop's.

    id: names the connection on both ends.
    """

    def __init__(
        self,
        link_id: str,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        abort: Abort,
        on_lost: Callable[[], None],
    ) -> None:
        self.id = link_id
        self.loop = loop
        self._socket = connection
        self._abort = abort
        self._on_lost = on_lost
        self._requests: dict[int, LinkedRequest] = {}
        self._posted: deque[tuple[int, Delta]] = deque()
        self._unsent = memoryview(b"")  # the rest of the frame before
        self._sending = threading.Lock()
        self._blocked = False  # the loop continues when the socket is writable
        self._lost = False
        self._unpacker = Unpacker()
        loop.add_reader(connection, self._read)

    def open(self, number: int, request_id: str, choices: int) -> LinkedRequest:
        """Return a new request of this link. Raises EngineClosedError when the link is lost."""
        request = LinkedRequest(self, number, request_id, choices)
        if self._lost:
            raise EngineClosedError("the connection to the Ingress was lost")
        self._requests[number] = request
        return request

    def close_request(self, number: int) -> None:
        """Forget a request."""
        self._requests.pop(number, None)

    def post(self, number: int, delta: Delta) -> None:
        """Queue a delta; never blocks."""
        if not self._lost:
            self._posted.append((number, delta))

    def flush(self) -> None:
        """Send what is posted, as far as the Ingress reads; never blocks."""
        if self._posted:
            with self._sending:
                if not self._blocked:
                    self._send()

    def call_on_loop(self, callback: Callable[[], None]) -> None:
        """Call something on the event loop, unless that has been closed."""
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            logger.debug("the event loop is closed")

    def close(self) -> None:
        """Close the connection and fail its requests. Idempotent."""
        if self._lost:
            return
        self._lost = True
        self.loop.remove_reader(self._socket)
        self.loop.remove_writer(self._socket)
        with self._sending:
            self._blocked = True
            self._posted.clear()
            self._socket.close()
        for request in self._requests.values():
            request.lose()
        self._requests.clear()
        self._on_lost()

    def _send(self) -> None:
        """Send frames until nothing is left or the socket takes no more. The lock is held."""
        while self._unsent or self._posted:
            if not self._unsent:
                self._unsent = memoryview(self._frame())
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                self._blocked = True
                self.call_on_loop(self._watch_writable)
                return
            except OSError:
                self._blocked = True
                self.call_on_loop(self.close)
                return

    def _frame(self) -> bytes:
        """Return a frame of all that is posted, the deltas of each choice merged."""
        choices: dict[tuple[int, int], list[Delta]] = {}
        while self._posted:
            number, delta = self._posted.popleft()
            choices.setdefault((number, delta.index), []).append(delta)
        return encode((number, merged(deltas)) for (number, _), deltas in choices.items())

    # The event loop's thread

    def _watch_writable(self) -> None:
        if not self._lost:
            self.loop.add_writer(self._socket, self._continue)

    def _continue(self) -> None:
        self.loop.remove_writer(self._socket)
        with self._sending:
            self._blocked = False
            self._send()

    def _read(self) -> None:
        """End the requests that the Ingress has no more use for."""
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._unpacker.feed(data)
        for number, index in self._unpacker:
            if (request := self._requests.get(number)) is not None:
                self._abort(request.request_id, index, "cancelled" if index is None else "stop")


class DeltaLinks:
    """The links of one Generator, one to each Ingress. Belongs to one event loop, except for `flush`."""

    def __init__(self, abort: Abort) -> None:
        self._abort = abort
        self._links: dict[bytes, asyncio.Task[DeltaLink | None]] = {}  # by the Ingress' secret
        self._open: tuple[DeltaLink, ...] = ()

    async def to(self, address: LinkAddress) -> DeltaLink | None:
        """Return the link to an Ingress; None if it cannot be reached, which is logged."""
        task = self._links.get(address.secret)
        if task is None:
            task = self._links[address.secret] = asyncio.create_task(self._connect(address))
        return await asyncio.shield(task)

    def flush(self) -> None:
        """Send what is posted on all links. Any thread."""
        for link in self._open:
            link.flush()

    async def _connect(self, address: LinkAddress) -> DeltaLink | None:
        loop = asyncio.get_running_loop()
        link_id = secrets.token_hex(8)
        try:
            connection = await asyncio.wait_for(_connected(address, link_id), _CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            logger.warning(
                "The Ingress at %s:%d cannot be reached (%s): its tokens go through Serve, which costs more. Allow"
                " connections between the nodes of the cluster on all ports.",
                address.host,
                address.port,
                error or type(error).__name__,
            )
            loop.call_later(_RETRY_PAUSE_S, self._links.pop, address.secret, None)
            return None

        def forget() -> None:
            self._links.pop(address.secret, None)
            self._open = tuple(other for other in self._open if other is not link)

        link = DeltaLink(link_id, connection, loop, self._abort, forget)
        self._open = (*self._open, link)
        return link


async def _connected(address: LinkAddress, link_id: str) -> socket.socket:
    """Connect to an Ingress, and return when that has accepted the connection."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(connection, (address.host, address.port))
        await loop.sock_sendall(connection, address.secret + bytes.fromhex(link_id))
        if not await loop.sock_recv(connection, 1):
            raise ConnectionError("it closed the connection")
    except BaseException:
        connection.close()
        raise
    return connection
