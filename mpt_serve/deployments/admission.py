"""Admission control: how much work one Ingress replica accepts."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mpt_serve.openai.errors import NotReadyError
from mpt_serve.openai.gate import OVERLOADED_HEADER

__all__ = ["Admission", "Reservation"]

_REMEMBERED_ENDS = 64  # HTTP requests whose ends the drain rate is measured over
_RATE_WINDOW_S = 60.0  # and how old they may be
_UNKNOWN_WAIT_S = 5.0  # without a measured rate
_LONGEST_WAIT_S = 120.0  # what clients honour
_SEVERAL = 8  # requests that have a typical length
_EARLIEST = 0.1  # share of the wait after which the first of the refused return


class Admission:
    """Bounds the work that waits or runs: choices by their number, prompts by their tokens.

    An HTTP request is counted as one choice before its body is read (`reserve`), and by its choices and tokens once
    they are known (`Reservation.admit`). Serve could refuse too, but in plain text; its own bounds are therefore set
    above these.

    spread: returns numbers from 0 to 1 that spread the refused over the time in which the accepted work drains.
    """

    def __init__(
        self,
        max_requests: int,
        max_prompt_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._max_requests = max_requests
        self._max_prompt_tokens = max_prompt_tokens
        self._clock = clock
        self._spread = spread
        self._ends: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED_ENDS)  # time, choices
        self._admitted = 0
        self.requests = 0
        self.prompt_tokens = 0

    @contextmanager
    def reserve(self) -> Iterator["Reservation"]:
        """Count one HTTP request while the context is entered. Raises NotReadyError (503, `overloaded`)."""
        if self.requests >= self._max_requests:
            raise self._overloaded(f"{self.requests} choices wait or run, the limit is {self._max_requests}")
        if self.full:
            raise self._overloaded(self._tokens_reason())
        reservation = Reservation(self)
        self.requests += 1
        try:
            yield reservation
        finally:
            self.requests -= reservation.requests
            self.prompt_tokens -= reservation.prompt_tokens
            if reservation.admitted:
                self._admitted -= 1
                self._ends.append((self._clock(), reservation.requests))

    @contextmanager
    def admit(self, prompts: Sequence[int], choices: int = 1) -> Iterator[None]:
        """Reserve and admit one HTTP request while the context is entered; see `Reservation.admit`."""
        with self.reserve() as reservation:
            reservation.admit(prompts, choices)
            yield

    @property
    def full(self) -> bool:
        """Return whether no other HTTP request is counted now.

        That is so as well when another prompt of the length that prompts have at present would be too much: it would be
        read and tokenized in vain.
        """
        typical = self.prompt_tokens / self._admitted if self._admitted >= _SEVERAL else 0
        most = self._max_prompt_tokens
        return self.requests >= self._max_requests or self.prompt_tokens >= most or self.prompt_tokens + typical > most

    def retry_after_s(self) -> float:
        """Return when one of the refused should try again.

        The work that waits or runs drains within some time, by the rate of ends in the last minute. Each of the refused
        gets another moment of it, so that they return neither together nor before there is capacity.
        """
        wait = min(_LONGEST_WAIT_S, self._drain_time_s())
        return wait * (_EARLIEST + (1 - _EARLIEST) * self._spread())

    def resize(self, reservation: "Reservation", requests: int, prompt_tokens: int) -> None:
        """Count a reservation by its choices and tokens. Raises NotReadyError, which leaves everything as it is."""
        others = self.requests - reservation.requests
        if self._admitted and others + requests > self._max_requests:
            raise self._overloaded(f"{others} choices wait or run, the limit is {self._max_requests}")
        if self._admitted and self.prompt_tokens + prompt_tokens > self._max_prompt_tokens:
            raise self._overloaded(self._tokens_reason())
        self._admitted += 1
        self.requests = others + requests
        self.prompt_tokens += prompt_tokens

    def _tokens_reason(self) -> str:
        return f"{self.prompt_tokens} prompt tokens wait or run, the limit is {self._max_prompt_tokens}"

    def _overloaded(self, reason: str) -> NotReadyError:
        message = f"The server is at capacity: {reason}. Retry later."
        seconds = self.retry_after_s()
        error = NotReadyError(message, code="overloaded", retry_after_s=seconds)
        error.headers[OVERLOADED_HEADER.decode()] = f"{seconds:.2f}"
        return error

    def _drain_time_s(self) -> float:
        now = self._clock()
        recent = [(end, choices) for end, choices in self._ends if now - end < _RATE_WINDOW_S]
        if len(recent) < 2 or now == recent[0][0]:
            return _UNKNOWN_WAIT_S
        per_second = sum(choices for _, choices in recent[1:]) / (now - recent[0][0])
        return max(1, self.requests) / per_second


class Reservation:
    """One HTTP request's part of the capacity.

    requests: choices that it counts as. admitted: whether these and its tokens are known and accepted.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.requests = 1
        self.prompt_tokens = 0
        self.admitted = False

    def admit(self, prompts: Sequence[int], choices: int = 1) -> None:
        """Count the request by what it asks for: call it once.

        prompts: tokens of each. choices: generated for each prompt; each counts, and they share the prompt's tokens.

        All are admitted or none. A request that exceeds a bound by itself is admitted when there is no other, so that
        it is not refused for ever. Raises NotReadyError (503, `overloaded`).
        """
        requests, prompt_tokens = len(prompts) * choices, sum(prompts)
        self._admission.resize(self, requests, prompt_tokens)
        self.requests, self.prompt_tokens, self.admitted = requests, prompt_tokens, True
