"""The receiving end of links; see `link_sender`."""

import asyncio
import hmac
import logging
import secrets
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, cast

from mpt_serve.deployments.link_wire import (
    ACCEPTED,
    HELLO_BYTES,
    SECRET_BYTES,
    LinkAddress,
    Unpacker,
    encrypted_only,
    keep_alive,
    local_name,
    pack,
)

__all__ = ["Connection", "LinkReceiver"]

logger = logging.getLogger("ray.serve")

_HELLO_TIMEOUT_S = 10.0
_MAX_STRANGERS = 64  # connections that have not proved themselves yet


class LinkReceiver(ABC):
    """Accepts links, once it is started. Belongs to one event loop."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._connections: dict[str, Connection] = {}
        self.strangers = 0  # connections that have not proved themselves yet
        self._listening: asyncio.Task[tuple[str, int] | None] | None = None
        self._servers: list[asyncio.Server] = []

    @abstractmethod
    def take_frames(self, connection: "Connection", frames: list[Any]) -> None:
        """Take all that has come on a connection: more than one frame if this end is slow."""

    @abstractmethod
    def lose(self, connection: "Connection") -> None:
        """End what depends on a connection, since it is lost."""

    def start(self, host: str) -> None:
        """Begin to listen on an address of this node that all others can reach. Idempotent."""
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen(host))

    async def address(self, number: int) -> LinkAddress | None:
        """Return where the items of a stream are to be sent; None to leave that to Serve."""
        if self._listening is None:
            return None
        done = self._listening.done()
        place = self._listening.result() if done else await asyncio.shield(self._listening)
        return None if place is None else LinkAddress(*place, self._secret, number)

    def connection(self, link_id: str) -> "Connection | None":
        """Return the connection of a link; None if it is lost."""
        return self._connections.get(link_id)

    def close(self) -> None:
        """Close the sockets that are listened on, and all connections."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections.values()):
            connection.close()

    async def _listen(self, host: str) -> tuple[str, int] | None:
        if encrypted_only():
            return None
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(lambda: Connection(self), host, 0)
        except OSError as error:
            logger.warning("No socket for links on %s (%s): tokens go through Serve.", host, error)
            return None
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        if (name := local_name(host, port, self._secret)) is not None:
            with suppress(OSError):  # senders then use TCP
                self._servers.append(await loop.create_unix_server(lambda: Connection(self), name))
        return host, port

    # For the connections

    def accepts(self, secret: bytes) -> bool:
        """Return whether a sender proves itself."""
        return hmac.compare_digest(secret, self._secret)

    def add(self, link_id: str, connection: "Connection") -> None:
        """Take a connection that has proved itself."""
        self._connections[link_id] = connection

    def remove(self, link_id: str, connection: "Connection") -> None:
        """Forget a connection that is lost."""
        self._connections.pop(link_id, None)
        self.lose(connection)


class Connection(asyncio.Protocol):
    """One connection from a sender: first its hello, then frames.

    received: how often something has come.
    """

    def __init__(self, receiver: LinkReceiver) -> None:
        self.received = 0
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._hello = b""
        self._id = ""  # empty until the connection has proved itself
        self._unpacker = Unpacker(max_buffer_size=0)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait a limited time for the hello."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no instance of it
        if (own := transport.get_extra_info("socket")) is not None:
            keep_alive(own)
        self._receiver.strangers += 1
        if self._receiver.strangers > _MAX_STRANGERS:
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(_HELLO_TIMEOUT_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        """Pass on the frames that are complete."""
        self.received += 1
        if not self._id:
            data = self._greet(data)
        self._unpacker.feed(data)
        if frames := list(self._unpacker):
            self._receiver.take_frames(self, frames)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what depends on this connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._receiver.strangers -= not self._id
        self._receiver.remove(self._id, self)

    def send(self, message: object) -> None:
        """Send a message to the sender."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(message))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _greet(self, data: bytes) -> bytes:
        """Take the hello, and return what follows it."""
        assert self._transport is not None
        assert self._timer is not None
        received = self._hello + data
        self._hello, data = received[:HELLO_BYTES], received[HELLO_BYTES:]
        if len(self._hello) < HELLO_BYTES:
            return b""
        self._timer.cancel()
        if not self._receiver.accepts(self._hello[:SECRET_BYTES]):
            self._transport.abort()
            return b""
        self._id = self._hello[SECRET_BYTES:].hex()
        self._receiver.strangers -= 1
        self._receiver.add(self._id, self)
        self._transport.write(ACCEPTED)
        return data
