"""One streamed response, or one request passed to an Ingress directly, between the proxy and its client."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto

from starlette.types import Message, Receive, Send

from mpt_serve.deployments.link_receiver import Connection
from mpt_serve.deployments.response_wire import LINKED_HEADER, DirectRequest, NoteKind, Part, Start
from mpt_serve.openai.arriving_bodies import received_again
from mpt_serve.openai.eager import run_eagerly
from mpt_serve.openai.error_forms import broken_stream
from mpt_serve.openai.errors import InternalServerError

__all__ = ["LinkedResponse", "Outcome", "Waiting"]

logger = logging.getLogger("ray.serve")

_LATE_S = 10.0  # that a response's first part may be behind its end through Serve
_PROCESS_ENDED = "The process that streamed this response has ended. Send the request again."
_FAILED = "The server could not complete this response. Send the request again."


@dataclass
class Waiting:
    """What waits for the clients of all responses, in bytes."""

    bytes: int = 0


class Outcome(Enum):
    """What becomes of a request that was passed to an Ingress directly, until its response begins."""

    BEGUN = auto()
    NOT_TAKEN = auto()  # nothing has been done of it, and nothing will be
    FAILED = auto()
    CLIENT_LEFT = auto()


class LinkedResponse:
    """One request, between the proxy and its client.

    number: the proxy's name of it. path: of the request. header: the request header for the Ingress. request_id: the
    response header with the request's id.
    connection: what the response comes on, once something has come or the request was passed directly. on_read: called
    when an Ingress has read the request. on_end: called when the whole response has come; the client may take its time
    to read it.
    """

    def __init__(
        self,
        number: int,
        path: str,
        header: tuple[bytes, bytes],
        request_id: tuple[bytes, bytes],
        receive: Receive,
        send: Send,
        all_waiting: Waiting,
    ) -> None:
        self.number = number
        self._path = path
        self.header = header
        self._request_id = request_id
        self.connection: Connection | None = None
        self.on_read: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing
        self._receive = receive
        self._send = send
        self._all_waiting = all_waiting
        self._start: Start | None = None  # that has come, and is not sent yet
        self.status = 0  # of a response that has begun on the link
        self._direct: asyncio.Future[Outcome] | None = None  # of a request that was passed directly
        self._leaving: asyncio.Future[None] | None = None  # of its client
        self._taken = False  # whether something has come on the link
        self._linked = False  # whether the response comes on a link, and its start has come
        self._lost = False  # whether the link is lost
        self._through_serve = False  # whether the client has a start of Serve's
        self._waiting = bytearray()  # while the client reads slowly
        self._ends = False  # whether nothing follows what waits
        self._complete = False  # whether the client has the whole body
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._busy: asyncio.Future[None] | None = None  # sends what the client was too slow for

    @property
    def incomplete(self) -> bool:
        """Return whether the response began here and has not ended."""
        return self._linked and not self.ended

    @property
    def ended(self) -> bool:
        """Return whether nothing more is sent to the client."""
        return self._ended.done()

    @property
    def waiting_bytes(self) -> int:
        """Return how much waits until the client reads."""
        return len(self._waiting)

    async def receive(self) -> Message:
        """Receive for Serve; a disconnect goes to the Ingress at once.

        The web server reports one after each complete response, too. Serve, which sees the end of a response later than
        the client does, would take that for a client that left early; when it sees the end, it ends this call.
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            if self._complete:
                await asyncio.get_running_loop().create_future()
            self.drop()
        return message

    async def send(self, message: Message) -> None:
        """Send for Serve; of a response that comes on a link it sees the end alone, which waits for the link's.

        Another start than that of the link's is an error of Serve's, and breaks off what the link has begun.
        """
        if message["type"] == "http.response.start":
            headers = [header for header in message["headers"] if header[0] != LINKED_HEADER]
            if len(headers) < len(message["headers"]):
                self.take(Part(Start(message["status"], headers), b"", False))
                if self._lost:
                    self.break_off()
            elif self._linked:
                self._tell_ingress()
                self.break_off(_FAILED)
            else:
                self._through_serve = True
                await self._send(message)
        elif not self._linked:
            await self._send(message)
        elif not message.get("more_body", False):
            self.on_end()
            await self.wait_for_end()

    async def pass_directly(self, connection: Connection, request: DirectRequest) -> Outcome:
        """Send the request to an Ingress, and return when its response begins, or what becomes of it instead."""
        self.connection = connection
        self._direct = asyncio.get_running_loop().create_future()
        await self._receive()  # the body, which goes along
        connection.send(request)
        self._leaving = asyncio.ensure_future(self._watch_client())
        outcome = await self._direct
        if outcome is Outcome.NOT_TAKEN:
            self._stop_watching()
            self.connection, self._direct, self._lost = None, None, False
            self._receive = received_again(request.body, self._receive)
        return outcome

    async def wait_for_end(self) -> None:
        """Wait until the client has the response, or has left."""
        if self.connection is None:  # nothing has come, and would not if the link was lost before
            await asyncio.wait({self._ended}, timeout=_LATE_S)
            if self.connection is None:
                self.break_off()
        await asyncio.wait({self._ended})  # a cancellation of this call is none of the future's

    def take_note(self, kind: NoteKind) -> None:
        """Take a note of the Ingress' on the request."""
        if kind == NoteKind.READ:
            self.on_read()
        elif kind == NoteKind.REFUSED:
            self._decide(Outcome.NOT_TAKEN)
        elif self._linked:
            self.break_off(_FAILED)
        else:
            self._decide(Outcome.FAILED)

    def take(self, part: Part) -> None:
        """Take a part of the response."""
        if self._through_serve or self._ends:
            return
        self._taken = True
        if part.start is not None and not self._linked:  # it comes on the link and through Serve
            self._linked = True
            self._start = part.start.with_header(self._request_id)
            self.status = part.start.status
            self._decide(Outcome.BEGUN)
        if self.ended:
            return
        self._waiting += part.body
        self._all_waiting.bytes += len(part.body)
        self._ends = part.ends
        if part.ends:
            self.on_end()
        self._pass_on()

    def drop(self) -> None:
        """End the response, since the client does not read the rest of it."""
        self._tell_ingress()
        self._end()

    def lose(self) -> None:
        """Take note that the connection is lost: what has begun is broken off, the rest may come through Serve."""
        self._lost = True
        self._decide(Outcome.FAILED if self._taken else Outcome.NOT_TAKEN)
        if self._linked:
            self.break_off()

    def break_off(self, message: str = _PROCESS_ENDED) -> None:
        """End with an error event: the rest will not come."""
        if not self._ends:
            self.take(Part(None, broken_stream(InternalServerError(message), self._path), True))

    async def finish(self) -> None:
        """Break off the response unless it is complete, and wait until the client has it."""
        self.break_off()
        await self.wait_for_end()

    def _pass_on(self) -> None:
        """Send what waits, unless the client is still to be waited for."""
        if not self._linked or self._busy is not None or self.ended:
            return
        if self._start is None and not (self._waiting or self._ends):
            return
        part = Part(self._start, self._take_waiting(), self._ends)
        self._start = None
        rest = run_eagerly(self._send_part(part))
        if rest is not None:
            self._busy = asyncio.ensure_future(self._wait_for_client(rest, ends=part.ends))
        elif part.ends:
            self._end_complete()

    async def _send_part(self, part: Part) -> None:
        """Send a part, or end the response: no error may end the connection, on which others depend."""
        try:
            if part.start is not None:
                await self._send({"type": "http.response.start", **part.start._asdict()})
            if part.body or part.ends:
                await self._send({"type": "http.response.body", "body": part.body, "more_body": not part.ends})
        except OSError:  # the client has disconnected
            self.drop()
        except Exception:
            logger.exception("A response could not be sent.")
            self.drop()

    async def _wait_for_client(self, rest: Awaitable[None], *, ends: bool) -> None:
        await rest
        self._busy = None
        if ends:
            self._end_complete()
        else:
            self._pass_on()

    def _tell_ingress(self) -> None:
        """Let the Ingress end the response."""
        if self.connection is not None:
            self.connection.send(self.number)

    def _take_waiting(self) -> bytes:
        body = bytes(self._waiting)
        self._all_waiting.bytes -= len(body)
        self._waiting.clear()
        return body

    def _end_complete(self) -> None:
        self._complete = not self.ended
        self._end()

    def _end(self) -> None:
        if not self.ended:
            self._take_waiting()
            self._ended.set_result(None)
            self._decide(Outcome.CLIENT_LEFT)
            self._stop_watching()

    async def _watch_client(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def _stop_watching(self) -> None:
        """Wait no longer for the client to leave. The task refers to this object, so this one must not to it."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def _decide(self, outcome: Outcome) -> None:
        if self._direct is not None and not self._direct.done():
            self._direct.set_result(outcome)


def _nothing() -> None:
    """Do nothing."""
