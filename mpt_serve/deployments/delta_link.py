"""The Generator's end of the links that carry deltas to the Ingresses.

There is one frame for each step of the engine, written by the engine's own thread. While an Ingress reads slowly, the
deltas of each choice are merged. What comes back on the connection ends requests, and begins those that need not wait
for their call of Serve's.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from mpt_serve.deployments.delta_wire import encode, merged
from mpt_serve.deployments.link_sender import Link, Links
from mpt_serve.deployments.request_wire import LinkRequest, Message, decode_request
from mpt_serve.engine.request import AbortReason, Delta
from mpt_serve.errors import EngineClosedError

__all__ = ["DeltaLink", "LinkedRequest", "delta_links"]

# Ends a request in the engine, or one choice of it: takes its id, the choice's index or None, and the reason.
Abort = Callable[[str, int | None, AbortReason], None]

# Submits a request that came over the link; takes what receives its deltas, too. Raises what the request's call raises.
Begin = Callable[[LinkRequest, Callable[[Delta], None]], object]


class LinkedRequest:
    """One request whose deltas go over a link.

    ended: done when every choice has finished; fails with EngineClosedError when the link is lost before.
    begun_here: the request came over the link, and its call of Serve's follows it.
    """

    def __init__(self, link: "DeltaLink", number: int, request_id: str, choices: int, begun_here: bool = False) -> None:
        self.request_id = request_id
        self.begun_here = begun_here
        self.ended: asyncio.Future[None] = link.loop.create_future()
        self._link = link
        self._number = number
        self._unfinished = choices

    def post(self, delta: Delta) -> None:
        """Take a delta from the engine; thread-safe, never blocks. `flush` of the link sends it."""
        self._link.post(self._number, delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
            if not self._unfinished:
                self._link.call_on_loop(self.end)

    def end(self) -> None:
        """Take note that nothing more is to come."""
        if not self.ended.done():
            self.ended.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # nobody may await it any more


class DeltaLink(Link[Delta]):
    """One connection to an Ingress, and the requests whose deltas go there."""

    def __init__(
        self,
        link_id: str,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[], None],
        abort: Abort,
        begin: Begin,
    ) -> None:
        self._abort = abort
        self._begin = begin
        self._requests: dict[int, LinkedRequest] = {}
        super().__init__(link_id, connection, loop, on_lost)

    def open(self, number: int, request_id: str, choices: int) -> LinkedRequest:
        """Return a new request of this link. Raises EngineClosedError when the link is lost."""
        self.check_open()
        request = self._requests[number] = LinkedRequest(self, number, request_id, choices)
        return request

    def close_request(self, number: int) -> None:
        """Forget a request."""
        self._requests.pop(number, None)

    def begun(self, number: int) -> LinkedRequest | None:
        """Return a request that came over this link; None once its Ingress has left it."""
        return self._requests.get(number)

    def encode(self, posted: Iterable[tuple[int, Delta]]) -> bytes:
        """Return a frame of the deltas, those of each choice merged."""
        choices: dict[tuple[int, int], list[Delta]] = {}
        for number, delta in posted:
            choices.setdefault((number, delta.index), []).append(delta)
        return encode((number, merged(deltas)) for (number, _), deltas in choices.items())

    def take(self, message: Any) -> None:
        """Begin a request, or end one, or one choice of it, that the Ingress has no more use for."""
        number, *rest = message
        if len(rest) > 1:
            self._begin_request(message)
            return
        [index] = rest
        if (request := self._requests.get(number)) is not None:
            if not request.ended.done():
                self._abort(request.request_id, index, "cancelled" if index is None else "stop")
            if index is None and request.begun_here:
                self.close_request(number)
                request.end()

    def lose(self) -> None:
        """Fail the requests, and end those in the engine whose calls may not have come."""
        for request in self._requests.values():
            request.fail(EngineClosedError("the connection to the Ingress was lost"))
            if request.begun_here:
                self._abort(request.request_id, None, "cancelled")
        self._requests.clear()

    def _begin_request(self, message: Message) -> None:
        """Begin a request; what that raises, its call raises."""
        number, request_id, _, params, _ = message
        request = LinkedRequest(self, number, request_id, params.get("n", 1), begun_here=True)
        self._requests[number] = request
        try:
            self._begin(decode_request(message), request.post)
        except Exception as error:
            request.fail(error)
        self.flush()  # what the engine may have posted at once


def delta_links(abort: Abort, begin: Begin) -> Links[DeltaLink]:
    """Return the links of one Generator."""
    return Links(partial(DeltaLink, abort=abort, begin=begin), "Ingress")
