"""How deltas that follow each other closely become one: an event costs many times what its token does."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["Choice", "Entry", "Pace"]

logger = logging.getLogger("ray.serve")

_EVENTS_PER_S = 1500.0  # of all streams of one Generator together: with more, each of them takes longer steps,
_LONGEST_S = 0.1  # of at most that many seconds

Choice = tuple[int, int]  # a request's number, and the choice's index
Entry = Sequence[Any]  # of a frame


class Pace:
    """Passes on what one Generator sends, at least `interval_s` apart unless nothing would be gained by that.

    A frame holds what one step of the engine has generated. It waits if the next one, should it take as long as this
    one did, joins it within the interval. The interval grows with the number of choices, so that the events of all are
    no more than the processors can bear. Belongs to one event loop.

    deliver: takes a choice and its entries, in order. on_error: is called if that raises where no caller sees it.
    """

    def __init__(
        self, interval_s: float, deliver: Callable[[Choice, Sequence[Entry]], None], on_error: Callable[[], None]
    ) -> None:
        self._interval_s = interval_s
        self._deliver = deliver
        self._on_error = on_error
        self._held: dict[Choice, list[Entry]] = {}
        self._came = self._passed = float("-inf")  # when the last frame came, and when all was passed on
        self._timer: asyncio.TimerHandle | None = None

    def take(self, entries: Iterable[tuple[Choice, Entry, bool]]) -> None:
        """Take entries, each with its choice and whether it is urgent, and pass on what does not wait.

        An urgent entry takes what its choice has waiting with it.
        """
        urgent: dict[Choice, None] = {}  # in order
        for choice, entry, is_urgent in entries:
            self._held.setdefault(choice, []).append(entry)
            if is_urgent:
                urgent[choice] = None
        if not self._held:
            return
        loop = asyncio.get_running_loop()
        interval_s = self._interval_s and max(self._interval_s, min(len(self._held) / _EVENTS_PER_S, _LONGEST_S))
        now, due = loop.time(), self._passed + interval_s
        took, self._came = now - self._came, now
        if now + took >= due:
            self.pass_on()
            return
        for choice in urgent:
            self._deliver(choice, self._held.pop(choice))
        if self._held and self._timer is None:
            self._timer = loop.call_at(due, self._pass_on_late)

    def pass_on(self) -> None:
        """Pass on all that waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._passed = asyncio.get_running_loop().time()
        held, self._held = self._held, {}
        for choice, entries in held.items():
            self._deliver(choice, entries)

    def _pass_on_late(self) -> None:
        try:
            self.pass_on()
        except Exception:
            logger.exception("What a Generator has sent could not be read.")
            self._on_error()
