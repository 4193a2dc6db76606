"""The Generator's end of the links that carry deltas to the Ingresses.

There is one frame for each step of the engine, written by the engine's own thread. While an Ingress reads slowly, the
deltas of each choice are merged. What comes back on the connection ends requests.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial

from mpt_serve.deployments.delta_wire import encode, merged
from mpt_serve.deployments.link_sender import Link, Links
from mpt_serve.engine.request import AbortReason, Delta
from mpt_serve.errors import EngineClosedError

__all__ = ["DeltaLink", "LinkedRequest", "delta_links"]

_HELD_S = 0.1  # that deltas of a request that nobody waits for are held, so that several go together

# Ends a request in the engine, or one choice of it: takes its id, the choice's index or None, and the reason.
Abort = Callable[[str, int | None, AbortReason], None]


class LinkedRequest:
    """One request whose deltas go over a link: at once, or in the background ten times a second, and with each end.

    Each frame wakes the Ingress, which then takes a core from requests that somebody waits for.

    ended: done when every choice has finished; fails with EngineClosedError when the link is lost before.
    """

    def __init__(self, link: "DeltaLink", number: int, request_id: str, choices: int, background: bool) -> None:
        self.request_id = request_id
        self.ended: asyncio.Future[None] = link.loop.create_future()
        self._link = link
        self._number = number
        self._unfinished = choices
        self._background = background
        self._held: list[Delta] = []
        self._next_at = 0.0  # in the background

    def post(self, delta: Delta) -> None:
        """Take a delta from the engine, on its thread; never blocks. `flush` of the link sends it."""
        self._held.append(delta)
        if self._background and delta.finish_reason is None:
            now = time.monotonic()
            if now < self._next_at:
                return
            self._next_at = now + _HELD_S
        for held in self._held:
            self._link.post(self._number, held)
        self._held.clear()
        if delta.finish_reason is not None:
            self._unfinished -= 1
            if not self._unfinished:
                self._link.call_on_loop(self._end)

    def lose(self) -> None:
        """Fail, since the link is lost."""
        if not self.ended.done():
            self.ended.set_exception(EngineClosedError("the connection to the Ingress was lost"))
            self.ended.exception()  # nobody may await it any more

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class DeltaLink(Link[Delta]):
    """One connection to an Ingress, and the requests whose deltas go there."""

    def __init__(
        self,
        link_id: str,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[], None],
        abort: Abort,
    ) -> None:
        self._abort = abort
        self._requests: dict[int, LinkedRequest] = {}
        super().__init__(link_id, connection, loop, on_lost)

    def open(self, number: int, request_id: str, choices: int, background: bool = False) -> LinkedRequest:
        """Return a new request of this link. Raises EngineClosedError when the link is lost."""
        self.check_open()
        request = self._requests[number] = LinkedRequest(self, number, request_id, choices, background)
        return request

    def close_request(self, number: int) -> None:
        """Forget a request."""
        self._requests.pop(number, None)

    def encode(self, posted: Iterable[tuple[int, Delta]]) -> bytes:
        """Return a frame of the deltas, those of each choice merged."""
        choices: dict[tuple[int, int], list[Delta]] = {}
        for number, delta in posted:
            choices.setdefault((number, delta.index), []).append(delta)
        return encode((number, merged(deltas)) for (number, _), deltas in choices.items())

    def take(self, message: tuple[int, int | None]) -> None:
        """End a request, or one choice of it, that the Ingress has no more use for."""
        number, index = message
        if (request := self._requests.get(number)) is not None:
            self._abort(request.request_id, index, "cancelled" if index is None else "stop")

    def lose(self) -> None:
        """Fail the requests."""
        for request in self._requests.values():
            request.lose()
        self._requests.clear()


def delta_links(abort: Abort) -> Links[DeltaLink]:
    """Return the links of one Generator."""
    return Links(partial(DeltaLink, abort=abort), "Ingress")
