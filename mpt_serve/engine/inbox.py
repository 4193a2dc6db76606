"""What other threads ask of the engine's own: requests to begin, and choices to end, in order."""

import queue
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mpt_serve.engine.request import EarlyReason, Request


@dataclass(frozen=True, slots=True)
class AddRequest:
    """Begin a request, with all its choices."""

    choices: list[Request]


@dataclass(frozen=True, slots=True)
class Abort:
    """End what was submitted before under this id; index: the one choice that is meant, None for all."""

    request_id: str
    index: int | None
    reason: EarlyReason


class Inbox:
    """Submissions and endings, from any thread to the one that takes them.

    Putting something in takes no lock and is one indivisible append. So it may happen in a finalizer, which runs on any
    thread and in the middle of anything, and an interrupt comes before it or after it. What was put stays visible to
    `num_choices` until the taker is `done` with it.
    """

    def __init__(self) -> None:
        self._items: deque[AddRequest | Abort] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # its `put` is reentrant, unlike a condition's notify

    def put(self, item: AddRequest | Abort) -> None:
        try:
            self._items.append(item)
        finally:  # also when it is interrupted after the append
            self._bell.put(None)

    @property
    def num_choices(self) -> int:
        """Choices that have been submitted, and are not taken in yet."""
        # Of all ways to read a deque that others append to, copying is the one that nothing comes between.
        return sum(len(item.choices) for item in self._items.copy() if isinstance(item, AddRequest))

    # The taker's side

    def take(self, wait: bool) -> Sequence[AddRequest | Abort]:
        """What was put, the first first. wait: sleep until there is something, or `wake` is called."""
        if wait:
            self._bell.get()
        while not self._bell.empty():  # before the items are read: those that come later ring anew
            self._bell.get()
        return self._items.copy()

    def done(self, count: int) -> None:
        """The first `count` items have been taken in."""
        for _ in range(count):
            self._items.popleft()

    def pop(self) -> AddRequest | Abort | None:
        """Take the first item, None when there is none; any thread, when there is no other taker any more."""
        try:
            return self._items.popleft()
        except IndexError:
            return None

    def wake(self) -> None:
        """Let the taker look."""
        self._bell.put(None)
