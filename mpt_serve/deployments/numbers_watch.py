"""Detects a model that computes no numbers."""

__all__ = ["NumbersWatch"]


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
