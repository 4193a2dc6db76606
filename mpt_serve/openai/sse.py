"""Server-sent events."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring

from starlette.types import Message, Send

from mpt_serve.openai.disconnect import ClientDisconnectedError
from mpt_serve.openai.eager import run_eagerly
from mpt_serve.openai.errors import ApiError, error_body

__all__ = ["CHUNKS", "DONE", "KEEP_ALIVE", "EventStream", "StreamForm", "event", "json_string"]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold events back
}


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

# Some clients take these for line ends, though neither JSON nor the standard of server-sent events does.
_ESCAPED = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


def event(data: Mapping[str, object], name: str = "") -> bytes:
    """Return one event with a JSON object, without a line end of any kind in it. name: of the event; empty: none."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + _bytes(_encode(data)) + b"\n\n"


@dataclass(frozen=True)
class StreamForm:
    """How an API writes its streams.

    named: the name of each event is its `type`. keep_alive: what is sent while there is nothing to send. end: what
    follows the last event.
    """

    named: bool = False
    keep_alive: bytes = KEEP_ALIVE
    end: bytes = DONE

    def event(self, data: Mapping[str, object]) -> bytes:
        """Return one event."""
        return event(data, str(data["type"]) if self.named else "")


CHUNKS = StreamForm()  # of completions and chat


def json_string(text: str) -> bytes:
    """Return a text as it stands in an event, with its quotes."""
    return _bytes(encode_basestring(text))


def _bytes(text: str) -> bytes:
    return (text if text.isascii() else text.translate(_ESCAPED)).encode()


class EventStream:
    """An ASGI response that is sent one event after the other."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self.headers = dict(_HEADERS)
        self.at_disconnect: Callable[[], None] = lambda: None  # called as soon as the client disconnects
        self.form = CHUNKS
        self.failure: Callable[[ApiError], Mapping[str, object]] = error_body  # the event of an error
        self._raw_send = send

    async def start(self) -> None:
        """Send the status, 200, and the headers."""
        self.started = True
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, events: Iterable[bytes]) -> None:
        """Send events together, in one message."""
        if body := b"".join(events):
            await self._send(_body(body))

    def send_now(self, body: bytes) -> Awaitable[None] | None:
        """Send events without a task, from a callback of the event loop.

        Returns None if they have been sent. Otherwise the server has to wait for the client: returns the rest of the
        work, which a task must await before it sends anything else.
        """
        return run_eagerly(self._send(_body(body)))

    async def end(self) -> None:
        """Send what ends a stream of this form, and end the response."""
        await self._send({"type": "http.response.body", "body": self.form.end, "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """Send an error as an event, since the status has been sent already, and end the response."""
        await self.send([self.form.event(self.failure(error))])
        await self.end()

    async def _send(self, message: Message) -> None:
        try:
            await self._raw_send(message)
        except OSError:  # what servers of ASGI 2.4 raise after a disconnect
            raise ClientDisconnectedError from None


def _body(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}
