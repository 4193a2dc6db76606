"""The Tokenizer's end of its links to the Ingresses: short texts come, their ids go, without a call of Serve's.

A frame to the Ingress is `{"replies": [[number, ids], ...]}`: a call's number, and its ids as int32 in the machine's
order, or None for a call that failed.
"""

import asyncio
import socket
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from mpt_serve.deployments.link_sender import Link, Links
from mpt_serve.deployments.link_wire import pack

__all__ = ["EncodeLink", "encode_links"]

# Runs a method of the Tokenizer's, by its name, with these arguments.
Run = Callable[[str, Sequence[Any]], Awaitable[Sequence[int]]]


class EncodeLink(Link[bytes | None]):
    """One connection to an Ingress, and the texts of it that are being encoded."""

    def __init__(
        self,
        link_id: str,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[], None],
        run: Run,
    ) -> None:
        self._run = run
        self._calls: set[asyncio.Task[None]] = set()
        super().__init__(link_id, connection, loop, on_lost)

    def encode(self, posted: Iterable[tuple[int, bytes | None]]) -> bytes:
        """Return a frame of results; an empty list if there are none, as of deltas."""
        replies = list(posted)
        return bytes(pack({"replies": replies} if replies else ()))

    def take(self, message: tuple[int, str, Sequence[Any]]) -> None:
        """Begin with a call: its number, the method's name, and its arguments."""
        task = self.loop.create_task(self._reply(*message))
        self._calls.add(task)  # the loop itself does not keep tasks alive
        task.add_done_callback(self._calls.discard)

    def lose(self) -> None:
        """End the calls, whose results nobody takes."""
        for task in self._calls:
            task.cancel()

    async def _reply(self, number: int, method: str, arguments: Sequence[Any]) -> None:
        try:
            ids = array("i", await self._run(method, arguments)).tobytes()
        except Exception:  # the Ingress calls again, through Serve, which passes errors on
            ids = None
        self.post(number, ids)
        self.flush()


def encode_links(run: Run) -> Links[EncodeLink]:
    """Return the links of one Tokenizer, on which the Ingresses also hear that its process runs."""
    return Links(partial(EncodeLink, run=run), "Ingress", "ids of short texts")
