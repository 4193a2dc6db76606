"""Server-sent events."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.types import Message, Send

from mpt_serve.openai.disconnect import ClientDisconnectedError
from mpt_serve.openai.errors import ApiError, error_body

__all__ = ["DONE", "KEEP_ALIVE", "EventStream", "event"]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold events back
}


# Line ends to some readers of streams, though not to JSON, nor by the standard of server-sent events.
_ESCAPED = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


def event(data: Mapping[str, Any]) -> bytes:
    """Return one event with a JSON object, which has no line end of any kind in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b"data: " + (text if text.isascii() else text.translate(_ESCAPED)).encode() + b"\n\n"


class EventStream:
    """An ASGI response that is sent event by event."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self.headers = dict(_HEADERS)
        self._raw_send = send

    async def start(self) -> None:
        """Send the status, 200, and the headers."""
        self.started = True
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, events: Iterable[bytes]) -> None:
        """Send events together, in one write."""
        if body := b"".join(events):
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Send the end mark and end the response."""
        await self._send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """Send an error and end; the status has left already, so the error travels as an event."""
        await self.send([event(error_body(error))])
        await self.end()

    async def _send(self, message: Message) -> None:
        try:
            await self._raw_send(message)
        except OSError:  # what servers of ASGI 2.4 raise when nobody listens
            raise ClientDisconnectedError from None
