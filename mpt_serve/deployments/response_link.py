"""The Ingress' end of the links that carry streamed responses to Serve's proxies.

Through Serve, each message of a response is an object of Ray's, which costs an Ingress and a proxy together several
times what its token costs the engine. Over a link, what all streams produce in one turn of the event loop is one frame.
Requests come with their bodies, and the link tells of clients that disconnect: to ask Serve's proxy for either would be
two more calls for each request. Most requests to generate come over the link themselves (`direct_ingress`); the others
are calls of Serve's.
"""

import asyncio
import logging
import pickle
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.deployments.link_sender import Link, Links
from mpt_serve.deployments.response_wire import (
    BODY_KEY,
    LINK_HEADER,
    LINKED_HEADER,
    DirectRequest,
    Note,
    NoteKind,
    Part,
    Start,
    encode,
    is_event_stream,
    joined,
    link_from,
    link_key,
    received_request,
    without_link_headers,
)
from mpt_serve.openai.arriving_bodies import received_again
from mpt_serve.openai.endpoint import ON_READ

__all__ = ["LinkedResponses", "RequestRunner", "ResponseLink", "disconnected"]

logger = logging.getLogger("ray.serve")

_DISCONNECT: Message = {"type": "http.disconnect"}


class RequestRunner(Protocol):
    """Takes requests that come over links.

    replica: the name under which Serve's proxies know this process; empty if it takes none.
    """

    replica: str

    def run(self, link: "ResponseLink", request: DirectRequest) -> None:
        """Begin to run a request, or refuse it."""


class ResponseLink(Link[Part | Note]):
    """One connection to a proxy. runner: takes the requests that come on it."""

    def __init__(
        self,
        runner: RequestRunner | None,
        link_id: str,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._clients: dict[int, asyncio.Future[None]] = {}
        self._flush_due = False
        super().__init__(link_id, connection, loop, on_lost)
        if runner is not None and runner.replica:
            self.note(0, NoteKind.REPLICA, runner.replica)

    def open(self, number: int) -> "asyncio.Future[None]":
        """Return what is done when the client of a response has disconnected, or cannot be reached any more."""
        client = self._clients[number] = self.loop.create_future()
        if self.lost:
            client.set_result(None)
        return client

    def close_response(self, number: int) -> None:
        """Forget a response."""
        self._clients.pop(number, None)

    def send(self, number: int, body: bytes = b"", *, ends: bool = False, start: Start | None = None) -> None:
        """Send a part of a response, together with those of others in the same turn of the event loop."""
        self._post_soon(number, Part(start, body, ends))

    def note(self, number: int, kind: NoteKind, text: str = "") -> None:
        """Send a note on a request, in the same way."""
        self._post_soon(number, Note(kind, text))

    def encode(self, posted: Iterable[tuple[int, Part | Note]]) -> bytes:
        """Return a frame of the notes and the parts, those of each response joined."""
        entries: list[tuple[int, Part | Note]] = []
        responses: dict[int, list[Part]] = {}
        for number, entry in posted:
            if isinstance(entry, Part):
                responses.setdefault(number, []).append(entry)
            else:
                entries.append((number, entry))
        return encode([*((number, joined(parts)) for number, parts in responses.items()), *entries])

    def take(self, message: int | Sequence[Any]) -> None:
        """Take a request, or the number of a response whose client has disconnected."""
        if not isinstance(message, int):
            self._run(message)
        elif (client := self._clients.get(message)) is not None and not client.done():
            client.set_result(None)

    def lose(self) -> None:
        """Take all clients for disconnected."""
        for number in self._clients:
            self.take(number)

    def _run(self, message: Sequence[Any]) -> None:
        """Begin a request, or let Serve call with it: no error may end the link, on which others depend."""
        try:
            assert self._runner is not None
            self._runner.run(self, received_request(message))
        except Exception:
            logger.exception("A request that came over a link could not be begun.")
            self.note(message[0], NoteKind.REFUSED)

    def _post_soon(self, number: int, entry: Part | Note) -> None:
        self.post(number, entry)
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush_all)

    def _flush_all(self) -> None:
        self._flush_due = False
        self.flush()


async def disconnected(left: "asyncio.Future[None]") -> Message:
    """Return the message that a client has disconnected, when `left` is done."""
    await asyncio.wait({left})
    return _DISCONNECT


class LinkedResponses:
    """ASGI middleware, the outermost: sends streamed responses over a link where the proxy has one.

    runner: takes requests that come over links; None: all are calls of Serve's.
    """

    def __init__(self, app: ASGIApp, runner: RequestRunner | None = None) -> None:
        self._app = app
        self._key = link_key()
        self._links: Links[ResponseLink] = Links(partial(ResponseLink, runner), "proxy")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = body = None
        if scope["type"] == "http":
            body = scope.pop(BODY_KEY, None)
            sent = [value for name, value in scope["headers"] if name == LINK_HEADER]
            if sent:  # it is an instruction to this middleware, which nothing else should see
                address = link_from(sent[0], self._key)
            scope = {**scope, "headers": without_link_headers(scope["headers"])}
        if address is None:
            await self._app(scope, receive, send)
            return
        # Serve asks for the body as soon as this waits for anything, so only with a link that is open it need not.
        link = self._links.to_if_open(address)
        if link is None:
            body, link = None, await self._links.to(address)
        if link is None:
            await self._app(scope, receive, send)
            return
        response = _LinkedResponse(link, address.number, receive, send, body)
        scope = {**scope, ON_READ: response.tell_read}
        try:
            await self._app(scope, response.receive, response.send)
        finally:
            link.close_response(address.number)


class _LinkedResponse:
    """Stands for the proxy in front of the application, for one request.

    body: the request's, where Serve has not been asked for it; else None.
    """

    def __init__(self, link: ResponseLink, number: int, receive: Receive, send: Send, body: bytes | None) -> None:
        self._link = link
        self._number = number
        self._receive = receive
        self._send = send
        self._left = link.open(number)
        self._body_read = False
        self._linked = False
        self._receive_body_along: Receive | None = None
        if body is not None and _ask_no_proxy(receive, partial(disconnected, self._left)):
            self._receive_body_along = received_again(body, partial(disconnected, self._left))
            link.send(number)  # the proxy needs to know whom to tell of a disconnect

    def tell_read(self) -> None:
        """Let the proxy know that the request has been read."""
        self._link.note(self._number, NoteKind.READ)

    async def receive(self) -> Message:
        """Return the next message of the request's; the disconnect, as soon as either way tells of it."""
        if self._receive_body_along is not None:
            return await self._receive_body_along()
        if not self._body_read:
            message = await self._receive()
            self._body_read = message["type"] == "http.request" and not message.get("more_body", False)
            return message
        through_serve: asyncio.Future[Any] = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait({through_serve, self._left}, return_when=asyncio.FIRST_COMPLETED)
            return through_serve.result() if through_serve.done() else _DISCONNECT
        finally:
            through_serve.cancel()

    async def send(self, message: Message) -> None:
        """Send a message of the response's. Raises OSError when its client has disconnected."""
        if message["type"] == "http.response.start":
            self._linked = is_event_stream(message["headers"])
            if self._linked:  # Serve takes longer than the link, and events would wait for it
                self._link.send(self._number, start=Start(message["status"], message["headers"]))
                message = {**message, "headers": [*message["headers"], (LINKED_HEADER, b"1")]}
        elif self._linked:
            if self._left.done():
                raise OSError("the client has disconnected")
            ends = not message.get("more_body", False)
            self._link.send(self._number, message.get("body", b""), ends=ends)
            if not ends:
                return
            message = {**message, "body": b""}
        await self._send(message)


def _ask_no_proxy(receive: Receive, disconnect: Receive) -> bool:
    """Have Serve wait for `disconnect` where it would call its proxy for messages of a request.

    Returns whether `receive` is Serve's object for that, as this version of Serve has it.
    """
    if not hasattr(receive, "_receive_asgi_messages"):
        return False

    async def messages(_: object) -> bytes:
        return pickle.dumps([await disconnect()])

    receive._receive_asgi_messages = messages
    return True
