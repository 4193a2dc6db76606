"""The Ingress' end of the links that carry deltas from the Generators; see `delta_link`."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

from mpt_serve.deployments.delta_pace import Choice, Entry, Pace
from mpt_serve.deployments.delta_wire import decode, ends_early, is_last
from mpt_serve.deployments.link_calls import LinkCalls
from mpt_serve.deployments.link_receiver import Connection, LinkReceiver
from mpt_serve.engine.request import Delta
from mpt_serve.errors import EngineClosedError
from mpt_serve.openai.backend import OnDelta

__all__ = ["Delivery", "DeltaReceiver"]


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
        """Pass a delta on, then end the choices that this has stopped. What that raises ends the request.

        Of a choice that failed the tokens go first: its end, with which they may have been merged, takes none along.
        """
        if delta.failed and delta.token_ids:
            self.deliver(replace(delta, finish_reason=None, stop_reason=None, message=None))
            delta = replace(delta, token_ids=(), logprobs=None, prompt_logprobs=None)
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

    interval_s: see `Pace`. The first delta of a choice does not wait, nor does the last.
    """

    def __init__(self, interval_s: float = 0.0) -> None:
        super().__init__()
        self.calls = LinkCalls()
        self._interval_s = interval_s
        self._numbers = count()
        self._deliveries: dict[int, Delivery] = {}
        self._paces: dict[Connection, Pace] = {}

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
        entries: list[Entry] = []
        for frame in frames:
            if isinstance(frame, dict):
                self.calls.take(frame["replies"])
            else:
                entries += frame
        if entries:
            pace = self._pace(connection)
            if any(map(ends_early, entries)):  # an error ends a whole request, and what waits of it would be lost
                pace.pass_on()
            pace.take(self._wanted(connection, entries))

    def lose(self, connection: Connection) -> None:
        """Fail the requests and calls of a connection that is lost, with what has come of them delivered."""
        try:
            if (pace := self._paces.pop(connection, None)) is not None:
                pace.pass_on()
        finally:
            self.calls.lose(connection)
            for delivery in list(self._deliveries.values()):
                if delivery.connection is connection:
                    delivery.fail(EngineClosedError("the connection to the replica was lost"))

    def _pace(self, connection: Connection) -> Pace:
        pace = self._paces.get(connection)
        if pace is None:
            pace = self._paces[connection] = Pace(self._interval_s, self._deliver, connection.close)
        return pace

    def _wanted(self, connection: Connection, entries: Iterable[Entry]) -> Iterator[tuple[Choice, Entry, bool]]:
        """Return the entries of requests that are still here, each with its choice and whether it does not wait."""
        for entry in entries:
            number, index, *_ = entry
            delivery = self._deliveries.get(number)
            if delivery is not None:  # else it has left, and the engine will soon know
                delivery.connection = connection
                yield (number, index), entry, index not in delivery.begun or is_last(entry)

    def _deliver(self, choice: Choice, entries: Sequence[Entry]) -> None:
        number, index = choice
        delivery = self._deliveries.get(number)
        if delivery is None:
            return
        delivery.begun.add(index)
        delivery.deliver(decode(entries))
