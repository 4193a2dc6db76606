"""What a server measures of requests: in plain integers, so that counting costs a token next to nothing."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

__all__ = ["HISTOGRAMS", "Histogram", "ServerMetrics", "TokenTimer"]

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_GAPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

# The histograms by name, with the upper bounds of their buckets; above the last one there is another bucket.
HISTOGRAMS: Mapping[str, Sequence[float]] = {
    "time_to_first_token": _SECONDS,
    "inter_token": _GAPS,
    "queue_time": _SECONDS,
    "request_time": _SECONDS,
    "prompt_tokens": _TOKENS,
    "output_tokens": _TOKENS,
    "move_pause": _SECONDS,
}


class Histogram:
    """Counts numbers by buckets. counts: of each bucket, not cumulative. total: sum of the numbers."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, number: float) -> None:
        """Count a number."""
        self.counts[bisect_left(self.bounds, number)] += 1
        self.total += number


class ServerMetrics:
    """The counters of one Ingress replica. Belongs to one event loop.

    requests: HTTP requests by path and status; 499 stands for a client that disconnected before the status.
    refusals: errors that requests got, by code. moves: of choices, to other replicas.
    structured_output_failures: requests refused because their grammar cannot be compiled.
    """

    def __init__(self) -> None:
        self.histograms = {name: Histogram(bounds) for name, bounds in HISTOGRAMS.items()}
        self.requests: Counter[tuple[str, int]] = Counter()
        self.refusals: Counter[str] = Counter()
        self.moves = 0
        self.structured_output_failures = 0

    def observe(self, name: str, number: float) -> None:
        """Count a number in one of the `HISTOGRAMS`."""
        self.histograms[name].observe(number)

    def snapshot(self) -> dict[str, Any]:
        """Return all counters as plain data, which other processes can read."""
        return {
            "histograms": {name: (list(own.counts), own.total) for name, own in self.histograms.items()},
            "requests": [(path, status, count) for (path, status), count in self.requests.items()],
            "refusals": dict(self.refusals),
            "moves": self.moves,
            "structured_output_failures": self.structured_output_failures,
        }


class TokenTimer:
    """Measures when the tokens of one prompt's choices arrive. started: when the request did, by `perf_counter`."""

    __slots__ = ("_counts", "_gaps", "_last", "_metrics", "_started")

    def __init__(self, metrics: ServerMetrics, started: float, choices: int) -> None:
        self._metrics = metrics
        self._started: float | None = started  # until the first token
        self._gaps = metrics.histograms["inter_token"]
        self._counts = self._gaps.counts
        self._last = [0.0] * choices  # of each choice

    def tokens(self, choice: int, count: int) -> None:
        """Note that a choice has got tokens. Those of one delta share its distance from the delta before."""
        now = perf_counter()
        last = self._last[choice]
        self._last[choice] = now
        if last:
            gap = now - last
            self._gaps.total += gap
            self._counts[bisect_left(_GAPS, gap / count)] += count
        elif self._started is not None:
            self._metrics.observe("time_to_first_token", now - self._started)
            self._started = None
