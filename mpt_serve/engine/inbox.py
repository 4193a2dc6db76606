"""What other threads ask of the engine's thread: requests to add, and choices to abort, in order."""

import queue
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mpt_serve.engine.request import AbortReason, Request


@dataclass(frozen=True, slots=True)
class AddRequest:
    """Add a request, with all its choices."""

    choices: list[Request]


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request that was submitted before under this id; index: of the choice to end, None for all."""

    request_id: str
    index: int | None
    reason: AbortReason


class Inbox:
    """Additions and aborts, from any thread to the engine's.

    Adding an item takes no lock and is one indivisible append. So it may happen in a finalizer, which runs on any
    thread and in the middle of anything, and an interrupt comes before it or after it. An item stays visible to
    `num_choices` until the engine's thread is `done` with it.
    """

    def __init__(self) -> None:
        self._items: deque[AddRequest | Abort] = deque()
        # Wakes the engine's thread. Its `put` is reentrant, unlike a condition's notify.
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put(self, item: AddRequest | Abort) -> None:
        """Add an item."""
        try:
            self._items.append(item)
        finally:  # also when it is interrupted after the append
            self._signals.put(None)

    @property
    def num_choices(self) -> int:
        """Return the number of choices that have been submitted and not taken yet."""
        # A copy, because other threads append meanwhile: `copy` is atomic, iteration is not.
        return sum(len(item.choices) for item in self._items.copy() if isinstance(item, AddRequest))

    # For the engine's thread

    def take(self, wait: bool) -> Sequence[AddRequest | Abort]:
        """Return the items, oldest first. wait: sleep until there is one, or `wake` is called."""
        if wait:
            self._signals.get()
        while not self._signals.empty():  # before the items are read: later ones signal again
            self._signals.get()
        return self._items.copy()

    def done(self, count: int) -> None:
        """Remove the first `count` items, which have been handled."""
        for _ in range(count):
            self._items.popleft()

    def pop(self) -> AddRequest | Abort | None:
        """Remove and return the first item, None when there is none; any thread, once the engine's has ended."""
        try:
            return self._items.popleft()
        except IndexError:
            return None

    def wake(self) -> None:
        """End the sleep of the engine's thread."""
        self._signals.put(None)
