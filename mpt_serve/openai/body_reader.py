"""Reads the bodies of requests: each in bounded time, all of them in bounded memory, none at the others' cost."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.arriving_bodies import ArrivingBodies
from mpt_serve.openai.body import parse_json_object
from mpt_serve.openai.errors import UnsupportedMediaTypeError
from mpt_serve.openai.multipart import FormPart, form_boundary, parse_form

__all__ = ["BodyReader", "Turns"]

LARGE_BODY_BYTES = 64 * 1024  # to check and parse more takes milliseconds
_CHARSET = re.compile(r"""\bcharset\s*=\s*["']?([^"';\s]*)""", re.IGNORECASE)
_SHARE = 0.25  # of the process's time that goes to large bodies, at most

T = TypeVar("T")


class BodyReader:
    """Reads and parses the bodies of all requests of one application. Belongs to one event loop.

    Bodies count towards the limits of `ArrivingBodies` until they are parsed.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._turns = Turns(_SHARE)
        self._bodies = ArrivingBodies(limits)

    async def read_json_object(self, request: Request) -> dict[str, Any]:
        """Read and parse a body.

        Raises UnsupportedMediaTypeError, InvalidValueError, and what `ArrivingBodies.read` raises.
        """
        _check_media_type(request)
        async with self._bodies.counted() as size:
            body = await self._bodies.read(request.scope["headers"], request.receive, size)
            if len(body) <= LARGE_BODY_BYTES:
                return parse_json_object(body, self._limits)
            return await self._turns.run(lambda: parse_json_object(body, self._limits))

    @asynccontextmanager
    async def form(self, request: Request) -> AsyncIterator[list[FormPart]]:
        """Read a form, and yield its parts; the body counts while the context is entered.

        Raises UnsupportedMediaTypeError, InvalidValueError, and what `ArrivingBodies.read` raises.
        """
        boundary = form_boundary(request.headers.get("content-type", ""))
        _check_encoding(request)
        async with self._bodies.counted() as size:
            body = await self._bodies.read(request.scope["headers"], request.receive, size)
            yield parse_form(body, boundary)


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


def _check_media_type(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMediaTypeError("The body must be JSON: send the header 'Content-Type: application/json'.")
    charset = _CHARSET.search(parameters)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaTypeError("The body must be JSON in UTF-8: leave out the charset, or send charset=utf-8.")
    _check_encoding(request)


def _check_encoding(request: Request) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaTypeError("The body must not be compressed: send no Content-Encoding.")
    if request.headers.get("transfer-encoding", "chunked").lower() not in ("chunked", "identity"):
        raise UnsupportedMediaTypeError("The body must not be compressed: send no Transfer-Encoding but 'chunked'.")
