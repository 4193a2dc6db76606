"""How much work one Ingress replica lets in."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mpt_serve.openai.errors import NotReadyError

__all__ = ["Admission"]

_REMEMBERED_ENDS = 64  # HTTP requests whose ends the drain rate is measured over
_PACE_WINDOW_S = 60.0  # and how old they may be


class Admission:
    """Bounds the work in the house, waiting and running: choices by their number, prompts by their tokens.

    Serve could refuse too, but in plain text; its own bounds are therefore set above these.
    """

    def __init__(self, max_requests: int, max_prompt_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_requests = max_requests
        self._max_prompt_tokens = max_prompt_tokens
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=_REMEMBERED_ENDS)
        self.requests = 0
        self.prompt_tokens = 0

    @contextmanager
    def admit(self, prompts: Sequence[int], choices: int = 1) -> Iterator[None]:
        """Hold the places of one HTTP request while the context is entered.

        prompts: tokens of each. choices: made for each prompt; each takes a place, and they share the prompt's tokens.

        All are let in or none. A request beyond a bound by itself is let in when nothing else is there, so that it is
        not refused for ever. Raises NotReadyError (503, `overloaded`).
        """
        requests, prompt_tokens = len(prompts) * choices, sum(prompts)
        if self.requests and self.requests + requests > self._max_requests:
            raise self._overloaded(f"{self.requests} choices wait or run, the limit is {self._max_requests}")
        if self.requests and self.prompt_tokens + prompt_tokens > self._max_prompt_tokens:
            raise self._overloaded(
                f"{self.prompt_tokens} prompt tokens wait or run, the limit is {self._max_prompt_tokens}"
            )
        self.requests += requests
        self.prompt_tokens += prompt_tokens
        try:
            yield
        finally:
            self.requests -= requests
            self.prompt_tokens -= prompt_tokens
            self._ends.append(self._clock())

    def _overloaded(self, reason: str) -> NotReadyError:
        return NotReadyError(
            f"The server is full: {reason}.", code="overloaded", retry_after_s=self._seconds_to_place()
        )

    def _seconds_to_place(self) -> float:
        """Estimate when about a tenth of the house has left, from the pace of the ends of the last minute."""
        now = self._clock()
        recent = [end for end in self._ends if now - end < _PACE_WINDOW_S]
        if len(recent) < 2 or now == recent[0]:
            return 5.0
        per_second = (len(recent) - 1) / (now - recent[0])
        return max(1, self.requests / 10) / per_second
