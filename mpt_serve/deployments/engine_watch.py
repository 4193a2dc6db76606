"""Detects an engine that has to be replaced: one that takes no steps, or computes no numbers."""

from collections import deque

__all__ = ["NumbersWatch", "StallWatch"]

_STALL_STEPS = 20  # steps of the recent length that an engine may take for one


class StallWatch:
    """Detects an engine that has work and takes no steps for too long: longer than `limit_s` and than recent steps."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._steps = -1
        self._since = 0.0
        self._recent: deque[float] = deque(maxlen=64)  # seconds for a step, between two checks that saw some

    def check(self, steps: int, busy: bool, now: float) -> None:
        """Record the engine's progress at time `now` (seconds). Raises RuntimeError if it has stalled for too long."""
        if busy and steps > self._steps >= 0:
            self._recent.append((now - self._since) / (steps - self._steps))
        if steps != self._steps or not busy:
            self._steps, self._since = steps, now
        elif now - self._since > max(self._limit_s, _STALL_STEPS * max(self._recent, default=0.0)):
            raise RuntimeError(f"the engine has work and took no step for {now - self._since:.0f} s")


class NumbersWatch:
    """Detects an engine whose requests end one after the other because their logits hold no number.

    A few alone may be the fault of their prompts: only a row of them, with no other request that finishes in between,
    is taken for a broken replica.
    """

    LIMIT = 3

    def __init__(self) -> None:
        self._finished = 0
        self._broken_before = 0

    def check(self, broken: int, finished: int) -> None:
        """Record the choices that ended without numbers and that finished well, both since the engine's start.

        Raises RuntimeError after `LIMIT` of the former in a row.
        """
        if finished != self._finished:
            self._finished, self._broken_before = finished, broken
        elif broken - self._broken_before >= self.LIMIT:
            count = broken - self._broken_before
            raise RuntimeError(f"the last {count} choices ended because the model's logits held no finite number")
