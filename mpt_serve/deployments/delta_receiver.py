"""The Ingress' end of the links that carry deltas from the Generators; see `delta_link`."""

import asyncio
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from itertools import count
from typing import Any

from mpt_serve.deployments.delta_wire import decode, is_last
from mpt_serve.deployments.link_calls import LinkCalls
from mpt_serve.deployments.link_receiver import Connection, LinkReceiver
from mpt_serve.engine.request import Delta
from mpt_serve.errors import EngineClosedError
from mpt_serve.openai.backend import OnDelta

__all__ = ["Delivery", "DeltaReceiver"]

Choice = tuple[int, int]  # a request's number, and the choice's index
Entry = Sequence[Any]  # of a frame


class Delivery:
    """Passes one request's deltas on, and ends its choices in the engine when they are stopped.

    unfinished: choices whose last delta has not come. ended: done when none is left that is wanted; fails with what
    ended the request otherwise.
    end_choice: ends one choice where no link does it.
    """

    def __init__(
        self,
        choices: Sequence[int],
        on_delta: OnDelta,
        stopped_choices: Set[int],
        end_choice: Callable[[int], None],
    ) -> None:
        self.unfinished = set(choices)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.number = -1
        self.begun: set[int] = set()  # choices of which something was delivered
        self.connection: Connection | None = None
        self._on_delta = on_delta
        self._stopped_choices = stopped_choices
        self._end_choice = end_choice
        self._ending: set[int] = set()

    @property
    def done(self) -> bool:
        """Return whether each choice has had its last delta or is stopped."""
        return not self.unfinished or (bool(self._stopped_choices) and self.unfinished <= self._stopped_choices)

    def deliver(self, delta: Delta) -> None:
        """Pass a delta on, then end the choices that this has stopped. What that raises ends the request."""
        if self.ended.done():
            return
        try:
            self._deliver(delta)
        except Exception as error:
            self.fail(error)

    def end(self) -> None:
        """End, although deltas may be missing."""
        if not self.ended.done():
            self.ended.set_result(None)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # nobody may await it any more

    def abort(self) -> None:
        """End all choices in the engine, if a link is known that can."""
        if self.connection is not None:
            self.connection.send((self.number, None))

    def _deliver(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            self.unfinished.discard(delta.index)
        if delta.index not in self._ending:
            self._on_delta(delta)
        if self.done:
            self.end()
        elif self._stopped_choices:
            for index in (self.unfinished & self._stopped_choices) - self._ending:
                self._ending.add(index)
                if self.connection is not None:
                    self.connection.send((self.number, index))
                else:
                    self._end_choice(index)


class DeltaReceiver(LinkReceiver):
    """Takes the deltas that Generators send to this Ingress, and what Tokenizers reply to its `calls`.

    interval_s: between two deltas of a choice. What comes sooner waits, and goes as one, since each delta becomes an
    event, which costs this process and all others on its way far more than a token does. The first delta of a choice
    and the last do not wait.
    """

    def __init__(self, interval_s: float = 0.0) -> None:
        super().__init__()
        self.calls = LinkCalls()
        self._interval_s = interval_s
        self._numbers = count()
        self._deliveries: dict[int, Delivery] = {}
        self._held: dict[Choice, list[Entry]] = {}
        self._next = 0.0  # when what is held goes on, by the event loop's clock
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def receive(self, delivery: Delivery) -> Iterator[None]:
        """Take a request's deltas while the context is entered; gives it its number."""
        delivery.number = next(self._numbers)
        self._deliveries[delivery.number] = delivery
        try:
            yield
        finally:
            del self._deliveries[delivery.number]

    def bind(self, delivery: Delivery, link_id: str) -> None:
        """Note which connection a request depends on, and fail the request if that is lost."""
        connection = self.connection(link_id)
        if connection is None:
            delivery.fail(EngineClosedError("the connection to the replica was lost"))
        else:
            delivery.connection = connection

    def take_frames(self, connection: Connection, frames: list[Any]) -> None:
        """Deliver what has come, the deltas of each choice merged."""
        urgent: dict[Choice, None] = {}  # in order
        for frame in frames:
            if isinstance(frame, dict):
                self.calls.take(frame["replies"])
            else:
                self._hold(connection, frame, urgent)
        loop = asyncio.get_running_loop()
        if loop.time() >= self._next:
            self._deliver_all()
            return
        for choice in urgent:
            self._deliver(choice, self._held.pop(choice))
        if self._held and self._timer is None:
            self._timer = loop.call_at(self._next, self._deliver_all)

    def lose(self, connection: Connection) -> None:
        """Fail the requests and calls of a connection that is lost, with what has come of them delivered."""
        self._deliver_all()
        self.calls.lose(connection)
        for delivery in list(self._deliveries.values()):
            if delivery.connection is connection:
                delivery.fail(EngineClosedError("the connection to the replica was lost"))

    def _hold(self, connection: Connection, frame: Sequence[Any], urgent: dict[Choice, None]) -> None:
        """Hold the entries of a frame, and add the choices whose entries do not wait to `urgent`."""
        for entry in frame:
            number, index, *_ = entry
            delivery = self._deliveries.get(number)
            if delivery is None:  # it has left, and the engine will soon know
                continue
            delivery.connection = connection
            self._held.setdefault((number, index), []).append(entry)
            if index not in delivery.begun or is_last(entry):
                urgent[number, index] = None

    def _deliver_all(self) -> None:
        """Deliver what is held, and hold what comes next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next = asyncio.get_running_loop().time() + self._interval_s
        held, self._held = self._held, {}
        for choice, entries in held.items():
            self._deliver(choice, entries)

    def _deliver(self, choice: Choice, entries: Sequence[Entry]) -> None:
        number, index = choice
        delivery = self._deliveries.get(number)
        if delivery is not None:
            delivery.begun.add(index)
            delivery.deliver(decode(entries))
