"""A request's answer as a whole, for callers who wait for it."""

import threading
from dataclasses import dataclass

from mpt_serve.engine.request import Delta, FinishReason


@dataclass(frozen=True, slots=True)
class Completion:
    """All that was generated for one prompt."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | None


class Collector:
    """Listens to one request and gathers its completion."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._last: Delta | None = None
        self._done = threading.Event()

    def __call__(self, delta: Delta) -> None:
        self._token_ids += delta.token_ids
        if delta.finish_reason is not None:
            self._last = delta
            self._done.set()

    def wait(self) -> Completion:
        self._done.wait()
        assert self._last is not None
        assert self._last.finish_reason is not None
        return Completion(tuple(self._token_ids), self._last.finish_reason, self._last.stop_reason)
