"""The proxy's end of the links that carry streamed responses; see `response_link`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from starlette.types import Message, Receive, Send

from mpt_serve.deployments.link_receiver import Connection, LinkReceiver
from mpt_serve.deployments.response_wire import (
    LINK_HEADER,
    LINKED_HEADER,
    Part,
    Start,
    decode,
    joined,
    link_header,
    read_note,
)
from mpt_serve.openai.eager import run_eagerly
from mpt_serve.openai.error_forms import broken_stream
from mpt_serve.openai.errors import InternalServerError

__all__ = ["LinkedResponse", "ResponseReceiver"]

logger = logging.getLogger("ray.serve")

MAX_WAITING_BYTES = 64 * 1024 * 1024  # for clients that read slowly; one that does not read at all is soon dropped
_LATE_S = 10.0  # that a response's first part may be behind its end through Serve
_PROCESS_ENDED = "The process that streamed this response has ended. Send the request again."
_FAILED = "The server could not complete this response. Send the request again."


class ResponseReceiver(LinkReceiver):
    """Takes the responses that Ingresses send to this proxy.

    key: proves to an Ingress that a request comes from a proxy.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key
        self._numbers = count()
        self._responses: dict[int, LinkedResponse] = {}
        self.waiting = Waiting()

    async def open(
        self, receive: Receive, send: Send, path: str, request_id: tuple[bytes, bytes]
    ) -> "LinkedResponse | None":
        """Return a response to be, for a request to this path; None to leave it all to Serve.

        request_id: the header with it, which Serve adds to the responses that it carries.
        """
        number = next(self._numbers)
        address = await self.address(number)
        if address is None:
            return None
        header = (LINK_HEADER, link_header(address, self._key))
        response = LinkedResponse(number, path, header, request_id, receive, send, self.waiting)
        self._responses[number] = response
        return response

    def close_response(self, response: "LinkedResponse") -> None:
        """Forget a response."""
        del self._responses[response.number]

    def take_frames(self, connection: Connection, frames: list[Any]) -> None:
        """Pass on what has come, the parts of each response joined."""
        responses: dict[int, list[Part]] = {}
        for number, part in (decode(entry) for frame in frames for entry in frame):
            responses.setdefault(number, []).append(part)
        for number, parts in responses.items():
            part = joined(parts)
            if number < 0:
                self._note_read(read_note(number))
                continue
            response = self._responses.get(number)
            if response is not None and not response.ended:
                response.connection = connection
                response.take(part)
            elif not part.ends:
                connection.send(number)  # its client has left
        while self.waiting.bytes > MAX_WAITING_BYTES:
            most = max(self._responses.values(), key=lambda response: response.waiting_bytes)
            if most.waiting_bytes == 0:  # what waits belongs to responses that have been closed
                break
            most.drop()

    def _note_read(self, number: int) -> None:
        response = self._responses.get(number)
        if response is not None:
            response.on_read()

    def lose(self, connection: Connection) -> None:
        """Break off the responses that come on a connection that is lost. What has not begun is left to Serve."""
        for response in self._responses.values():
            if response.connection is connection:
                response.lose()


@dataclass
class Waiting:
    """What waits for the clients of all responses, in bytes."""

    bytes: int = 0


class LinkedResponse:
    """One request, between the proxy and its client.

    number: the proxy's name of it. path: of the request. header: the request header for the Ingress. request_id: the
    response header with the request's id.
    connection: what the response comes on, once something has come. on_read: called when an Ingress has read the
    request. on_end: called when the whole response has come; the client may take its time to read it.
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
            await self._wait_for_end()

    def take(self, part: Part) -> None:
        """Take a part of the response."""
        if self._through_serve or self._ends:
            return
        if part.start is not None and not self._linked:  # it comes on the link and through Serve
            self._linked = True
            self._start = part.start.with_header(self._request_id)
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
        if self._linked:
            self.break_off()

    def break_off(self, message: str = _PROCESS_ENDED) -> None:
        """End with an error event: the rest will not come."""
        if not self._ends:
            self.take(Part(None, broken_stream(InternalServerError(message), self._path), True))

    async def finish(self) -> None:
        """Break off the response unless it is complete, and wait until the client has it."""
        self.break_off()
        await self._wait_for_end()

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
            self._end()
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

    async def _wait_for_end(self) -> None:
        """Wait until the client has the response, or has left."""
        if self.connection is None:  # nothing has come, and would not if the link was lost before
            await asyncio.wait({self._ended}, timeout=_LATE_S)
            if self.connection is None:
                self.break_off()
        await asyncio.wait({self._ended})  # a cancellation of this call is none of the future's

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


def _nothing() -> None:
    """Do nothing."""
