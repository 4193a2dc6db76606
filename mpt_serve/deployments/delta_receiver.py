"""The Ingress' end of the connections that carry deltas from the Generators; see `delta_link`."""

import asyncio
import hmac
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import count

from mpt_serve.deployments.delta_wire import SECRET_BYTES, LinkAddress, Unpacker, decode, merged, pack
from mpt_serve.engine.request import Delta
from mpt_serve.errors import EngineClosedError
from mpt_serve.openai.backend import OnDelta

__all__ = ["Delivery", "DeltaReceiver"]

logger = logging.getLogger("ray.serve")

_HELLO_BYTES = SECRET_BYTES + 8  # the secret, and the link's id
_HELLO_TIMEOUT_S = 10.0
_MAX_STRANGERS = 64  # connections that have not proved themselves yet
_ACCEPTED = b"\x01"


class Delivery:
    """Passes one request's deltas on, and ends its choices in the engine when they are stopped.

    unfinished: choices whose last delta has not come. ended: done when none is left that is wanted; fails with what
    ended the request otherwise.
    end_choice: ends one choice where no link does it.
    """

    def __init__(
        self,
        choices: Sequence[int],
        on_delta: OnDelta,
        stopped_choices: Set[int],
        end_choice: Callable[[int], None],
    ) -> None:
        self.unfinished = set(choices)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.number = -1
        self.connection: _Connection | None = None
        self._on_delta = on_delta
        self._stopped_choices = stopped_choices
        self._end_choice = end_choice
        self._ending: set[int] = set()

    @property
    def done(self) -> bool:
        """Return whether each choice has had its last delta or is stopped."""
        return not self.unfinished or (bool(self._stopped_choices) and self.unfinished <= self._stopped_choices)

    def deliver(self, delta: Delta) -> None:
        """Pass a delta on, then end the choices that this has stopped. What that raises ends the request."""
        if self.ended.done():
            return
        try:
            self._deliver(delta)
        except Exception as error:
            self.fail(error)

    def end(self) -> None:
        """End, although deltas may be missing."""
        if not self.ended.done():
            self.ended.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # nobody may await it any more

    def abort(self) -> None:
        """End all choices in the engine, if a link is known that can."""
        if self.connection is not None:
            self.connection.end(self.number)

    def _deliver(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self.unfinished.discard(delta.index)
        if delta.index not in self._ending:
            self._on_delta(delta)
        if self.done:
            self.end()
        elif self._stopped_choices:
            for index in (self.unfinished & self._stopped_choices) - self._ending:
                self._ending.add(index)
                if self.connection is not None:
                    self.connection.end(self.number, index)
                else:
                    self._end_choice(index)


class DeltaReceiver:
    """Takes the deltas that Generators send to this Ingress, once it is started. Belongs to one event loop."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._numbers = count()
        self._deliveries: dict[int, Delivery] = {}
        self._connections: dict[str, _Connection] = {}
        self.strangers = 0  # connections that have not proved themselves yet
        self._listening: asyncio.Task[tuple[str, int] | None] | None = None
        self._server: asyncio.Server | None = None

    @contextmanager
    def receive(self, delivery: Delivery) -> Iterator[None]:
        """Take a request's deltas while the context is entered; gives it its number."""
        delivery.number = next(self._numbers)
        self._deliveries[delivery.number] = delivery
        try:
            yield
        finally:
            del self._deliveries[delivery.number]

    def start(self, host: str) -> None:
        """Begin to listen on an address of this node that all others can reach."""
        self._listening = asyncio.get_running_loop().create_task(self._listen(host))

    async def address(self, number: int) -> LinkAddress | None:
        """Return where Generators send a request's deltas; None to leave that to Serve."""
        place = None if self._listening is None else await asyncio.shield(self._listening)
        return None if place is None else LinkAddress(*place, self._secret, number)

    def bind(self, delivery: Delivery, link_id: str) -> None:
        """Note which connection a request depends on, and fail the request if that is lost."""
        connection = self._connections.get(link_id)
        if connection is None:
            delivery.fail(EngineClosedError("the connection to the replica was lost"))
        else:
            delivery.connection = connection

    def close(self) -> None:
        """Close the server and all connections."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections.values()):
            connection.close()

    async def _listen(self, host: str) -> tuple[str, int] | None:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # what Ray encrypts must not go in the clear
            return None
        try:
            self._server = await asyncio.get_running_loop().create_server(lambda: _Connection(self), host, 0)
        except OSError as error:
            logger.warning("No socket for the Generators' tokens on %s (%s): they go through Serve.", host, error)
            return None
        return host, self._server.sockets[0].getsockname()[1]

    # For the connections

    def accepts(self, secret: bytes) -> bool:
        """Return whether a Generator proves itself."""
        return hmac.compare_digest(secret, self._secret)

    def add(self, link_id: str, connection: "_Connection") -> None:
        """Take a connection that has proved itself."""
        self._connections[link_id] = connection

    def take(self, connection: "_Connection", number: int, deltas: Sequence[Delta]) -> None:
        """Take what has come for one choice of a request."""
        delivery = self._deliveries.get(number)
        if delivery is not None:  # else it has left, and the engine will soon know
            delivery.connection = connection
            delivery.deliver(merged(deltas))

    def lose(self, link_id: str, connection: "_Connection") -> None:
        """Fail the requests of a connection that is lost."""
        self._connections.pop(link_id, None)
        for delivery in list(self._deliveries.values()):
            if delivery.connection is connection:
                delivery.fail(EngineClosedError("the connection to the replica was lost"))


class _Connection(asyncio.Protocol):
    """One connection from a Generator: first its hello, then frames of deltas."""

    def __init__(self, receiver: DeltaReceiver) -> None:
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._hello = b""
        self._id = ""  # empty until the connection has proved itself
        self._unpacker = Unpacker(max_buffer_size=0)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait a limited time for the hello."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._receiver.strangers += 1
        if self._receiver.strangers > _MAX_STRANGERS:
            transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(_HELLO_TIMEOUT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Deliver all that has come, the deltas of each choice merged: that is more than one step's if we are slow."""
        if not self._id:
            data = self._greet(data)
        self._unpacker.feed(data)
        choices: dict[tuple[int, int], list[Delta]] = {}
        for frame in self._unpacker:
            for entry in frame:
                choices.setdefault((entry[0], entry[1]), []).append(decode(entry))
        for (number, _), deltas in choices.items():
            self._receiver.take(self, number, deltas)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the requests that depend on this connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._receiver.strangers -= not self._id
        self._receiver.lose(self._id, self)

    def end(self, number: int, index: int | None = None) -> None:
        """End a request, or one choice of it, in the engine."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack((number, index)))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _greet(self, data: bytes) -> bytes:
        """Take the hello, and return what follows it."""
        assert self._transport is not None
        assert self._timer is not None
        received = self._hello + data
        self._hello, data = received[:_HELLO_BYTES], received[_HELLO_BYTES:]
        if len(self._hello) < _HELLO_BYTES:
            return b""
        self._timer.cancel()
        if not self._receiver.accepts(self._hello[:SECRET_BYTES]):
            self._transport.abort()
            return b""
        self._id = self._hello[SECRET_BYTES:].hex()
        self._receiver.strangers -= 1
        self._receiver.add(self._id, self)
        self._transport.write(_ACCEPTED)
        return data
