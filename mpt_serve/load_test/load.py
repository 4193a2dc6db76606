"""When requests begin: as many at once as wanted, or at random moments with a mean rate, or both."""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mpt_serve.load_test.connection import Connections
from mpt_serve.load_test.record import Record

__all__ = ["Load", "LoadPlan"]


@dataclass(frozen=True)
class LoadPlan:
    """How much load, and for how long.

    concurrency: requests at once; None: as many as the rate makes. rate: requests per second on average, whose times
    are a Poisson process; None: each begins when another one has ended. One of the two is given.
    requests: how many; None: no limit. duration_s: after which none begins; None: no limit. One of the two is given.
    seed: of the random times.
    """

    concurrency: int | None = 1
    rate: float | None = None
    requests: int | None = None
    duration_s: float | None = None
    seed: int = 0


@dataclass
class Load:
    """A run of a plan. records: of all requests that began, in that order.

    make_request: returns the bytes of the request with a number.
    """

    plan: LoadPlan
    connections: Connections
    make_request: Callable[[int], bytes]
    records: list[Record] = field(default_factory=list)
    started: float = 0.0

    async def run(self) -> None:
        """Send all requests, and return when the last has ended; if cancelled, those that run are cancelled too."""
        self.started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            if self.plan.rate is None:
                for _ in range(self.plan.concurrency or 1):
                    tasks.create_task(self._send_one_after_another())
            else:
                await self._send_at_random(tasks, self.plan.rate)

    def _may_begin(self) -> bool:
        """Return whether another request is to be sent now."""
        plan = self.plan
        if plan.requests is not None and len(self.records) >= plan.requests:
            return False
        return plan.duration_s is None or time.perf_counter() - self.started < plan.duration_s

    async def _send_one_after_another(self) -> None:
        while self._may_begin():
            await self._exchange(self._begin(time.perf_counter()))

    async def _send_at_random(self, tasks: asyncio.TaskGroup, rate: float) -> None:
        """Begin requests at their moments. One that must wait for the concurrency has begun: that wait is latency."""
        slots = None if self.plan.concurrency is None else asyncio.Semaphore(self.plan.concurrency)
        random_times, moment = random.Random(self.plan.seed), self.started
        end = math.inf if self.plan.duration_s is None else self.started + self.plan.duration_s
        while self._may_begin() and moment < end:
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            tasks.create_task(self._exchange(self._begin(moment), slots))
            moment += random_times.expovariate(rate)

    def _begin(self, moment: float) -> tuple[bytes, Record]:
        """Return the next request, and its record, which is kept."""
        record = Record(moment)
        self.records.append(record)
        return self.make_request(len(self.records) - 1), record

    async def _exchange(self, begun: tuple[bytes, Record], slots: asyncio.Semaphore | None = None) -> None:
        async with contextlib.nullcontext() if slots is None else slots:
            await self.connections.send(*begun)
