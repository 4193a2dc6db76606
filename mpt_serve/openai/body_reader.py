"""Reads the bodies of requests: each in bounded time, all of them in bounded memory, none at the others' cost."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.body import parse_json_object
from mpt_serve.openai.errors import (
    ApiError,
    BodyTimeoutError,
    NotReadyError,
    RequestTooLargeError,
    UnsupportedMediaTypeError,
)

__all__ = ["BodyReader", "Turns"]

LARGE_BODY_BYTES = 64 * 1024  # to check and parse more takes milliseconds
_CHARSET = re.compile(r"""\bcharset\s*=\s*["']?([^"';\s]*)""", re.IGNORECASE)
_SHARE = 0.25  # of the process's time that goes to large bodies, at most

T = TypeVar("T")


class BodyReader:
    """Reads and parses the bodies of all requests of one application. Belongs to one event loop.

    A body that arrives has one of `limits.max_unread_bodies` places. When all are taken, the one whose client has been
    silent for longest is given up, so that clients that send nothing keep no place from those that do. Bodies count
    towards `limits.max_unread_body_bytes` until they are parsed.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._turns = Turns(_SHARE)
        self._arriving: dict[_Arrival, None] = {}  # in the order of their last bytes, oldest first
        self._bytes = 0

    async def read_json_object(self, request: Request) -> dict[str, Any]:
        """Read and parse a body.

        Raises UnsupportedMediaTypeError, RequestTooLargeError, BodyTimeoutError or InvalidValueError, and NotReadyError
        while other bodies take all the memory that there is for them.
        """
        _check_media_type(request)
        self._check_declared_size(request)
        arrival = _Arrival()
        try:
            body = await self._read(request, arrival)
            if len(body) <= LARGE_BODY_BYTES:
                return parse_json_object(body, self._limits)
            return await self._turns.run(lambda: parse_json_object(body, self._limits))
        finally:
            self._bytes -= arrival.size

    async def _read(self, request: Request, arrival: "_Arrival") -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s) as arrival.deadline:
                self._enter(arrival)
                try:
                    async for chunk in request.stream():
                        body += chunk
                        self._count(arrival, len(chunk))
                finally:
                    self._arriving.pop(arrival, None)
        except TimeoutError:
            raise self._timeout(arrival) from None
        return bytes(body)

    def _enter(self, arrival: "_Arrival") -> None:
        if len(self._arriving) >= self._limits.max_unread_bodies:
            self._give_up(next(iter(self._arriving)))
        self._arriving[arrival] = None

    def _count(self, arrival: "_Arrival", size: int) -> None:
        arrival.size += size
        self._bytes += size
        if arrival.size > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)
        if arrival in self._arriving:  # it may have been given up since these bytes came
            del self._arriving[arrival]
            self._arriving[arrival] = None
        if self._bytes > self._limits.max_unread_body_bytes and self._bytes > arrival.size:
            raise NotReadyError("The server is at capacity: too many large bodies arrive. Retry later.")

    def _give_up(self, arrival: "_Arrival") -> None:
        del self._arriving[arrival]
        arrival.given_up = True
        assert arrival.deadline is not None
        arrival.deadline.reschedule(asyncio.get_running_loop().time())

    def _timeout(self, arrival: "_Arrival") -> ApiError:
        if arrival.given_up:
            error = NotReadyError("The server is at capacity: too many bodies arrive, others faster. Retry later.")
            error.headers["connection"] = "close"
            return error
        seconds = self._limits.body_timeout_s
        return BodyTimeoutError(f"The body did not arrive within {seconds:g} s, this server's limit.")

    def _check_declared_size(self, request: Request) -> None:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)


class _Arrival:
    """One body that is being read."""

    def __init__(self) -> None:
        self.size = 0
        self.given_up = False
        self.deadline: asyncio.Timeout | None = None


class Turns:
    """Runs work that keeps the interpreter busy one after the other, with pauses for everything else between them.

    share: of the time that the work may take while there is always more of it.
    """

    def __init__(self, share: float) -> None:
        self._pause_factor = 1 / share - 1
        self._lock = asyncio.Lock()

    async def run(self, work: Callable[[], T]) -> T:
        """Return what the work returns, in a thread, when its turn has come."""
        await self._lock.acquire()
        begun = time.monotonic()
        task = asyncio.ensure_future(asyncio.to_thread(work))
        task.add_done_callback(lambda _: self._pause(time.monotonic() - begun))
        return await asyncio.shield(task)  # a thread goes on when its caller is cancelled, and so does its turn

    def _pause(self, elapsed: float) -> None:
        asyncio.get_running_loop().call_later(elapsed * self._pause_factor, self._lock.release)


def _too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"The body is larger than {max_bytes} bytes.")


def _check_media_type(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMediaTypeError("The body must be JSON: send the header 'Content-Type: application/json'.")
    charset = _CHARSET.search(parameters)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaTypeError("The body must be JSON in UTF-8: leave out the charset, or send charset=utf-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaTypeError("The body must not be compressed: send no Content-Encoding.")
