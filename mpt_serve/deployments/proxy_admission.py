"""How many requests Serve's proxy passes on, so that it can refuse most of an overload by itself."""

import logging
import random
import time
from collections.abc import Callable

__all__ = ["ProxyAdmission"]

logger = logging.getLogger("ray.serve")

_PROBE_S = 0.25  # between requests that are passed on to find out whether there is more capacity
_FORGET_S = 2.0  # after the last refusal
_UNKNOWN_DRAIN_S = 5.0  # until an Ingress has measured how fast it drains
_EARLIEST = 0.1  # share of the drain time after which the first of the refused return, as an Ingress has it
_MEAN = (1 + _EARLIEST) / 2  # share of the drain time after which they return on average
_WEIGHT = 0.25  # of the last of an Ingress' refusals in the average
_RETURNS_PER_END = 2.0  # some of the refused do not return
_MOST_DRAINS = 10.0  # drain times over which the refused are spread, at most
_REFUSALS_PER_S = 100.0  # beyond that they are held back: what they cost is taken from the requests that run
_LONGEST_HOLD_S = 5.0
_BURST_S = 1.0
_LOG_PERIOD_S = 10.0


class ProxyAdmission:
    """Follows what the Ingress replicas accept: of their refusals, only a few a second are needed for that.

    A refusal shows that the requests that run are as many as there may be. From then on the end of one lets one other
    pass, and every quarter of a second one more than that, which is refused or shows that there may be more. Requests
    differ in what they cost, so the number is no constant.

    at_first: how many may run as long as no Ingress has refused any; None for no bound.
    spread: returns numbers from 0 to 1 that spread the refused.
    """

    def __init__(
        self,
        at_first: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._at_first = at_first
        self._clock = clock
        self._spread = spread
        self._limit = at_first
        self._probe_at = 0.0
        self._more = 1  # by which the next probe raises the limit
        self._refused_at = -_FORGET_S
        self._drain_s: float | None = None
        self._last_return = 0.0
        self._last_refusal = 0.0
        self._logged_at = 0.0
        self._not_logged = 0  # refusals
        self.running = 0

    @property
    def is_full(self) -> bool:
        """Return whether the next request is going to be refused, which needs no body for that."""
        return self._limit is not None and self.running >= self._limit and self._clock() < self._probe_at

    def begin(self) -> bool:
        """Count a request and return True, or return False to refuse it."""
        if self.is_full:
            return False
        now = self._clock()
        if self._limit is not None and self.running >= self._limit:
            self._limit += self._more
            self._more = min(2 * self._more, max(1, self._limit // 8))
            self._probe_at = now + _PROBE_S
        elif now - self._refused_at > _FORGET_S:  # what was scarce then may not be so now
            self._limit = self._at_first
        self.running += 1
        return True

    def end(self) -> None:
        """Count a request no longer, as it has ended."""
        self.running -= 1

    def end_refused(self, retry_after_s: float) -> None:
        """Count a request no longer, as an Ingress has refused it.

        retry_after_s: a moment of the time in which the Ingress' work drains, over which it spreads the refused.
        """
        self.running -= 1
        self._refused_at = self._clock()
        self._probe_at = self._refused_at + _PROBE_S
        self._limit = max(1, self.running if self._limit is None else min(self._limit, self.running))
        self._more = 1
        drain_s = retry_after_s / _MEAN
        self._drain_s = drain_s if self._drain_s is None else self._drain_s + _WEIGHT * (drain_s - self._drain_s)

    def retry_after_s(self) -> float:
        """Return when one more of the refused should try again.

        They return one after the other, twice as fast as those that run end. If there are too many for that, or they
        come back before, they are spread over ten times the time in which those that run end.
        """
        now = self._clock()
        drain_s = _UNKNOWN_DRAIN_S if self._drain_s is None else self._drain_s
        self._last_return = max(self._last_return, now + _EARLIEST * drain_s)
        if self._last_return > now + _MOST_DRAINS * drain_s:
            return drain_s * (_EARLIEST + (_MOST_DRAINS - _EARLIEST) * self._spread())
        self._last_return += drain_s / max(1, self.running) / _RETURNS_PER_END
        return (self._last_return - now) * (0.8 + 0.4 * self._spread())

    def hold_s(self) -> float:
        """Count a refusal, and return how long to hold it back: not at all, unless there are very many.

        So clients that try again at once, whatever Retry-After says, take little of the processor.
        """
        now = self._clock()
        self._log(now)
        earliest = max(self._last_refusal, now - _BURST_S) + 1 / _REFUSALS_PER_S
        self._last_refusal = min(earliest, now + _LONGEST_HOLD_S)
        return max(0.0, self._last_refusal - now)

    def _log(self, now: float) -> None:
        """Log refusals, of which the Ingress replicas know nothing, with one line for all of ten seconds."""
        self._not_logged += 1
        if now - self._logged_at >= _LOG_PERIOD_S:
            logger.warning(
                "The server is at capacity: %d requests run, %d were refused by this proxy since it was logged last.",
                self.running,
                self._not_logged,
            )
            self._logged_at, self._not_logged = now, 0
