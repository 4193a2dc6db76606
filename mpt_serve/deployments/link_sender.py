"""The sending end of links: one connection to each receiver, and one frame on it for all that is posted together.

An item costs no switch of tasks or threads, and no message of Serve's. While the receiver reads slowly, what is posted
waits, and goes as one frame.
"""

import asyncio
import logging
import secrets
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from mpt_serve.deployments.link_wire import LinkAddress, Unpacker, keep_alive, local_name
from mpt_serve.errors import EngineClosedError

__all__ = ["Link", "Links"]

logger = logging.getLogger("ray.serve")

_CONNECT_TIMEOUT_S = 5.0
_RETRY_PAUSE_S = 60.0  # before a receiver that could not be reached is tried again

T = TypeVar("T")


class Link(ABC, Generic[T]):
    """One connection to a receiver. `post` and `flush` belong to any thread, all else to the event loop's.

    id: names the connection on both ends. on_lost: is called once, when the connection is closed.
    """

    def __init__(
        self, link_id: str, connection: socket.socket, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]
    ) -> None:
        self.id = link_id
        self.loop = loop
        self.lost = False
        self._socket = connection
        self._on_lost = on_lost
        self._posted: deque[tuple[int, T]] = deque()
        self._unsent = memoryview(b"")  # the rest of the frame before
        self._sending = threading.Lock()
        self._blocked = False  # the loop continues when the socket is writable
        self._unpacker = Unpacker()
        loop.add_reader(connection, self._read)

    @abstractmethod
    def encode(self, posted: Iterable[tuple[int, T]]) -> bytes:
        """Return a frame of items, each with its stream's number."""

    @abstractmethod
    def take(self, message: Any) -> None:
        """Take a message from the receiver."""

    @abstractmethod
    def lose(self) -> None:
        """End what depends on the connection, since it is lost."""

    def check_open(self) -> None:
        """Raise EngineClosedError when the connection is lost."""
        if self.lost:
            raise EngineClosedError("the connection to the receiver was lost")

    def post(self, number: int, item: T) -> None:
        """Queue an item of a stream; never blocks."""
        if not self.lost:
            self._posted.append((number, item))

    def flush(self) -> None:
        """Send what is posted, as far as the receiver reads; never blocks."""
        if self._posted:
            with self._sending:
                if not self._blocked:
                    self._send()

    @property
    def behind(self) -> bool:
        """Return whether something is posted that the receiver has not taken yet."""
        return bool(self._posted or self._unsent) and not self.lost

    def beat(self) -> None:
        """Send a frame without items if nothing else is on its way, to show that this process runs; never blocks."""
        with self._sending:
            if not (self._blocked or self._unsent or self._posted):
                self._unsent = memoryview(self.encode(()))
                self._send()

    def call_on_loop(self, callback: Callable[[], None]) -> None:
        """Call something on the event loop, unless that has been closed."""
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            logger.debug("the event loop is closed")

    def close(self) -> None:
        """Close the connection and lose what depends on it. Idempotent."""
        if self.lost:
            return
        self.lost = True
        self.loop.remove_reader(self._socket)
        self.loop.remove_writer(self._socket)
        with self._sending:
            self._blocked = True
            self._posted.clear()
            self._socket.close()
        self.lose()
        self._on_lost()

    def _send(self) -> None:
        """Send frames until nothing is left or the socket takes no more. The lock is held."""
        while self._unsent or self._posted:
            if not self._unsent:
                self._unsent = memoryview(self.encode(self._take_posted()))
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

    def _take_posted(self) -> Iterator[tuple[int, T]]:
        while self._posted:
            yield self._posted.popleft()

    # The event loop's thread

    def _watch_writable(self) -> None:
        if not self.lost:
            self.loop.add_writer(self._socket, self._continue)

    def _continue(self) -> None:
        self.loop.remove_writer(self._socket)
        with self._sending:
            self._blocked = False
            self._send()

    def _read(self) -> None:
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
        for message in self._unpacker:
            self.take(message)


L = TypeVar("L", bound=Link[Any])

# Makes a link of its id, its connection, and what to call when it is lost.
MakeLink = Callable[[str, socket.socket, asyncio.AbstractEventLoop, Callable[[], None]], L]


class Links(Generic[L]):
    """The links of one process, one to each receiver. Belongs to one event loop, except for `flush`.

    receivers, items: what is at the other end, and what goes there, for the log.
    """

    def __init__(self, make: MakeLink[L], receivers: str, items: str = "tokens") -> None:
        self._make = make
        self._receivers = receivers
        self._items = items
        self._links: dict[bytes, asyncio.Task[L | None]] = {}  # by the receiver's secret
        self._open: tuple[L, ...] = ()

    async def to(self, address: LinkAddress) -> L | None:
        """Return the link to a receiver; None if it cannot be reached, which is logged."""
        task = self._task_to(address)
        return task.result() if task.done() else await asyncio.shield(task)

    def flush(self) -> None:
        """Send what is posted on all links. Any thread."""
        for link in self._open:
            link.flush()

    def to_if_open(self, address: LinkAddress) -> L | None:
        """Return the link to a receiver if there is one, or else begin to connect and return None."""
        task = self._task_to(address)
        return task.result() if task.done() else None

    def beat(self) -> None:
        """Show all receivers that this process runs. Any thread."""
        for link in self._open:
            link.beat()

    def _task_to(self, address: LinkAddress) -> asyncio.Task[L | None]:
        task = self._links.get(address.secret)
        if task is None:
            task = self._links[address.secret] = asyncio.create_task(self._connect(address))
        return task

    async def _connect(self, address: LinkAddress) -> L | None:
        loop = asyncio.get_running_loop()
        link_id = secrets.token_hex(8)
        try:
            connection = await asyncio.wait_for(_connected(address, link_id), _CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            logger.warning(
                "The %s at %s:%d cannot be reached (%s): its %s go through Serve, which costs more. Allow"
                " connections between the nodes of the cluster on all ports.",
                self._receivers,
                address.host,
                address.port,
                error or type(error).__name__,
                self._items,
            )
            loop.call_later(_RETRY_PAUSE_S, self._links.pop, address.secret, None)
            return None

        def forget() -> None:
            self._links.pop(address.secret, None)
            self._open = tuple(other for other in self._open if other is not link)

        place = f"{self._receivers} at {address.host}:{address.port}"
        logger.info("%s go to the %s over a link.", self._items.capitalize(), place)
        link = self._make(link_id, connection, loop, forget)
        self._open = (*self._open, link)
        return link


async def _connected(address: LinkAddress, link_id: str) -> socket.socket:
    """Connect to a receiver, by its Unix socket if it is on this node, and return when it has accepted."""
    hello = address.secret + bytes.fromhex(link_id)
    if (name := local_name(address.host, address.port, address.secret)) is not None:
        with suppress(OSError):  # it is on another node
            return await _greeted(socket.socket(socket.AF_UNIX), name, hello)
    connection = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(connection)
    return await _greeted(connection, (address.host, address.port), hello)


async def _greeted(connection: socket.socket, place: str | tuple[str, int], hello: bytes) -> socket.socket:
    """Connect a socket, prove this end to the receiver, and return it; closed where that fails."""
    loop = asyncio.get_running_loop()
    try:
        connection.setblocking(False)
        await loop.sock_connect(connection, place)
        await loop.sock_sendall(connection, hello)
        if not await loop.sock_recv(connection, 1):
            raise ConnectionError("it closed the connection")
    except BaseException:
        connection.close()
        raise
    return connection
