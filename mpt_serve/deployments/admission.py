"""Admission control: how much work one Ingress replica accepts."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mpt_serve.openai.errors import NotReadyError

__all__ = ["Admission"]

_REMEMBERED_ENDS = 64  # HTTP requests whose ends the completion rate is measured over
_RATE_WINDOW_S = 60.0  # and how old they may be


class Admission:
    """Bounds the work that waits or runs: choices by their number, prompts by their tokens.

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
        """Admit one HTTP request while the context is entered.

        prompts: tokens of each. choices: generated for each prompt; each counts, and they share the prompt's tokens.

        All are admitted or none. A request that exceeds a bound by itself is admitted when there is no other, so that
        it is not refused for ever. Raises NotReadyError (503, `overloaded`).
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
        message = f"The server is at capacity: {reason}. Retry later."
        return NotReadyError(message, code="overloaded", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> float:
        """Estimate when about a tenth of the work will have ended, from the rate of ends in the last minute."""
        now = self._clock()
        recent = [end for end in self._ends if now - end < _RATE_WINDOW_S]
        if len(recent) < 2 or now == recent[0]:
            return 5.0
        per_second = (len(recent) - 1) / (now - recent[0])
        return max(1, self.requests / 10) / per_second
