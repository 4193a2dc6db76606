"""The figures of a load test."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mpt_serve.load_test.record import Record

__all__ = ["Objective", "Summary", "gaps_of", "percentile", "summarize"]

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Objective:
    """Service level objective of a request: upper bounds, in milliseconds. None: no bound.

    ttft_ms: of the time to the first token. itl_ms: of the mean time between its tokens.
    """

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def is_met_by(self, record: Record) -> bool:
        """Return whether a request succeeded within the bounds."""
        within = [
            bound is None or (0.0 if seconds is None else seconds) * 1000 <= bound
            for bound, seconds in ((self.ttft_ms, record.ttft), (self.itl_ms, record.mean_gap))
        ]
        return not record.error and bool(record.token_times) and all(within)


@dataclass(frozen=True)
class Distribution:
    """Values in milliseconds; without any values everything is 0."""

    mean: float
    percentiles: tuple[float, ...]
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Distribution":
        """Return the distribution of durations."""
        values = sorted(1000 * value for value in seconds)
        if not values:
            return cls(0.0, (0.0,) * len(PERCENTILES), 0.0)
        return cls(sum(values) / len(values), tuple(percentile(values, p) for p in PERCENTILES), values[-1])

    def as_json(self) -> dict[str, float]:
        """Return the values by their names."""
        named = {f"p{p}": value for p, value in zip(PERCENTILES, self.percentiles, strict=True)}
        return {name: round(value, 3) for name, value in {"mean": self.mean, **named, "max": self.max}.items()}


@dataclass(frozen=True)
class Summary:
    """What a load test found.

    finished: requests without an error. errors: the others, by kind. seconds: from the first request to the last end.
    ttft, itl, tpot, e2e: of the finished: time to the first token, between two events with text, per token after the
        first as a mean of each request, and of the whole request.
    tokens_are_counted: by the server; otherwise an event with text counts as one token.
    good: finished requests that meet the objective.
    """

    seconds: float
    finished: int
    errors: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    tokens_are_counted: bool
    ttft: Distribution
    itl: Distribution
    tpot: Distribution
    e2e: Distribution
    objective: Objective
    good: int

    def per_s(self, amount: float) -> float:
        """Return an amount per second."""
        return amount / self.seconds if self.seconds > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {
            "seconds": round(self.seconds, 3),
            "finished": self.finished,
            "failed": sum(self.errors.values()),
            "errors": self.errors,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "tokens_are_counted": self.tokens_are_counted,
            "requests_per_s": round(self.per_s(self.finished), 3),
            "output_tokens_per_s": round(self.per_s(self.output_tokens), 2),
            "total_tokens_per_s": round(self.per_s(self.output_tokens + self.prompt_tokens), 2),
            "ttft_ms": self.ttft.as_json(),
            "itl_ms": self.itl.as_json(),
            "tpot_ms": self.tpot.as_json(),
            "e2e_ms": self.e2e.as_json(),
            "goodput": {
                "slo_ttft_ms": self.objective.ttft_ms,
                "slo_itl_ms": self.objective.itl_ms,
                "requests": self.good,
                "requests_per_s": round(self.per_s(self.good), 3),
            },
        }


def summarize(records: Sequence[Record], objective: Objective = Objective()) -> Summary:
    """Return the figures of requests; those that still run are left out."""
    ended = [record for record in records if record.ended]
    finished = [record for record in ended if not record.error]
    begin, end = min((r.started for r in ended), default=0.0), max((r.ended for r in ended), default=0.0)
    return Summary(
        seconds=end - begin,
        finished=len(finished),
        errors=dict(Counter(record.error for record in ended if record.error).most_common()),
        prompt_tokens=sum(record.prompt_tokens or 0 for record in finished),
        output_tokens=sum(record.num_tokens for record in finished),
        tokens_are_counted=all(record.output_tokens is not None for record in finished),
        ttft=Distribution.of(r.ttft for r in finished if r.ttft is not None),
        itl=Distribution.of(gaps_of(finished)),
        tpot=Distribution.of(r.mean_gap for r in finished if r.mean_gap is not None),
        e2e=Distribution.of(r.ended - r.started for r in finished),
        objective=objective,
        good=sum(map(objective.is_met_by, finished)),
    )


def gaps_of(records: Iterable[Record]) -> list[float]:
    """Return the seconds between the events with text of each request."""
    return [later - earlier for record in records for earlier, later in pairwise(record.token_times)]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that is not exceeded by `percent` of the values, which are in ascending order."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
