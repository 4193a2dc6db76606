"""Bodies of refused requests: read slowly, so that their clients receive the response, and delay nobody.

A connection that is closed while its client sends can take the response from the client, and most clients read nothing
before they have sent everything. So the rest of a body is read after the response, at a rate that costs little.
"""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.types import Message, Receive, Scope, Send

from mpt_serve.configuration.limits import Limits

__all__ = ["UnreadBodies"]

_BYTES_PER_S = 32 * 2**20  # of all of them together
_SMALL = 64 * 2**10  # is read with the headers, or soon after; uvicorn stops reading at that size


class UnreadBodies:
    """Responds to requests whose bodies are not wanted. Belongs to one event loop.

    limits: as many bodies as may arrive are read to their ends at a time, each within `body_timeout_s`. The connections
    of others are closed with the response.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._reading = 0
        self._turn = asyncio.Lock()

    async def respond(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        abort: Callable[[], None],
        response: Callable[[Send], Awaitable[None]],
    ) -> None:
        """Send a response at once, and read what is left of the request's body.

        abort: closes the connection. response: sends the whole response to what it is called with.
        """
        if not _may_be_large(scope):
            await response(send)
            return

        async def send_but_the_end(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await response(send_but_the_end)
        if not await self._read_rest(receive):
            abort()
        await send({"type": "http.response.body", "body": b""})

    async def _read_rest(self, receive: Receive) -> bool:
        """Return whether the body is complete, or its client has left."""
        if self._reading >= self._limits.max_unread_bodies:
            return False
        self._reading += 1
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while (message := await receive()).get("more_body", False):
                    async with self._turn:
                        await asyncio.sleep(len(message.get("body", b"")) / _BYTES_PER_S)
        except TimeoutError:
            return False
        finally:
            self._reading -= 1
        return True


def _may_be_large(scope: Scope) -> bool:
    """Return whether a request's body is larger than one that uvicorn has read by itself, or of unknown size."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and not _is_small(value)):
            return True
    return False


def _is_small(length: bytes) -> bool:
    return length.isdigit() and int(length[:20]) <= _SMALL
