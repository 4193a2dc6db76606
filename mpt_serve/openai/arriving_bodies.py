"""Bodies on their way in: each has bounded time and size, and all of them together bounded places and memory."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.errors import ApiError, BodyTimeoutError, NotReadyError, RequestTooLargeError

__all__ = ["ArrivingBodies", "BodySize", "received_again"]

Headers = Iterable[tuple[bytes, bytes]]


class BodySize:
    """How many bytes one body counts for, and whether all of it has come."""

    def __init__(self, bodies: "ArrivingBodies") -> None:
        self.bytes = 0
        self.complete = False
        self.given_up = False
        self.deadline: asyncio.Timeout | None = None
        self._bodies = bodies

    def release(self) -> None:
        """Count the body no longer: nothing holds it any more. Idempotent."""
        self._bodies.size -= self.bytes
        self.bytes = 0


class ArrivingBodies:
    """Reads the bodies of requests. Belongs to one event loop.

    A body that arrives has one of `limits.max_unread_bodies` places. When all are taken, the one whose client has been
    silent for longest is given up, so that clients that send nothing keep no place from those that do. Bodies count
    towards `limits.max_unread_body_bytes` until they are released.

    size: bytes that are counted now.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._arriving: dict[BodySize, None] = {}  # in the order of their last bytes, oldest first
        self.size = 0

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[BodySize]:
        """Count what is read with the yielded size until that is released, or the context left."""
        size = BodySize(self)
        try:
            yield size
        finally:
            size.release()

    async def read(self, headers: Headers, receive: Receive, size: BodySize) -> bytes:
        """Return a request's body.

        Raises RequestTooLargeError, BodyTimeoutError or ClientDisconnect, and NotReadyError while other bodies take all
        the memory that there is for them.
        """
        self._check_declared_size(headers)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s) as size.deadline:
                self._enter(size)
                try:
                    while not size.complete:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ClientDisconnect
                        chunk = message.get("body", b"")
                        body += chunk
                        size.complete = not message.get("more_body", False)
                        self._count(size, len(chunk))
                finally:
                    self._arriving.pop(size, None)
        except TimeoutError:
            raise self._timeout(size) from None
        return bytes(body)

    def _enter(self, size: BodySize) -> None:
        if len(self._arriving) >= self._limits.max_unread_bodies:
            self._give_up(next(iter(self._arriving)))
        self._arriving[size] = None

    def _count(self, size: BodySize, chunk: int) -> None:
        size.bytes += chunk
        self.size += chunk
        if size.bytes > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)
        if size in self._arriving:  # it may have been given up since these bytes came
            del self._arriving[size]
            self._arriving[size] = None
        if self.size > self._limits.max_unread_body_bytes and self.size > size.bytes:
            raise NotReadyError("The server is at capacity: too many large bodies arrive. Retry later.")

    def _give_up(self, size: BodySize) -> None:
        del self._arriving[size]
        size.given_up = True
        assert size.deadline is not None
        size.deadline.reschedule(asyncio.get_running_loop().time())

    def _timeout(self, size: BodySize) -> ApiError:
        error: ApiError
        if size.given_up:
            error = NotReadyError("The server is at capacity: too many bodies arrive, others faster. Retry later.")
        else:
            seconds = self._limits.body_timeout_s
            error = BodyTimeoutError(f"The body did not arrive within {seconds:g} s, this server's limit.")
        error.headers["connection"] = "close"  # what has not come by now is not awaited
        return error

    def _check_declared_size(self, headers: Headers) -> None:
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > self._limits.max_body_bytes:
                raise _too_large(self._limits.max_body_bytes)


def _too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"The body is larger than {max_bytes} bytes.")


def received_again(body: bytes, then: Receive) -> Receive:
    """Return what receives a body that has been read in one message, and after it what `then` receives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await then()

    return receive
