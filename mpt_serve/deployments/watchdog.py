"""Finds replicas that have stopped working without dying, moves their requests, and has them replaced.

A process that is frozen, or whose node cannot be reached, raises no error anywhere: its requests see silence, as they
also do while they wait for a slot. So the Ingress asks the replicas which requests they work on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from mpt_serve.errors import EngineClosedError

__all__ = ["ReplicaLostError", "ReplicaReport", "Reporting", "Watchdog", "Watched"]

logger = logging.getLogger("ray.serve")

_PERIOD_S = 1.0  # between two questions to the replicas
_WAITS = 25  # parts that the wait for a reply is divided into


class ReplicaLostError(EngineClosedError):
    """The replica that works on a request has stopped, although its process exists."""


@dataclass(frozen=True)
class ReplicaReport:
    """What a replica says of itself.

    replica: the name of its actor. requests: ids of those in its engine. stalled: how its engine has stopped working,
    empty while it works, or has none. link: the id of its link to the Ingress that asks, None while there is none.
    takes_texts: the link takes texts to encode; False for a Tokenizer of an older release too.
    """

    replica: str
    requests: Sequence[str]
    stalled: str
    link: str | None = None
    takes_texts: bool = False


class Reporting(Protocol):
    """What the watchdog needs of the replicas of a deployment."""

    async def reports(self) -> Sequence[Awaitable[ReplicaReport]]:
        """Ask all replicas; return the reports to come, one from each replica. Those of dead replicas raise."""

    def running(self) -> Set[str]:
        """Return the names of the replicas that take requests, as far as they are known."""

    def was_heard(self, replica: str, seconds: float) -> bool:
        """Return whether a replica has shown within some seconds that its process runs, although it may be slow."""

    async def replace_if_stopped(self, replica: str) -> None:
        """End the process of a replica, by its name, unless it passes a last health check; Serve starts another."""


class Watched:
    """One request while one replica works on it.

    name: what the id in the engine begins with.
    """

    def __init__(self, name: str, now: float, limit: asyncio.Timeout) -> None:
        self.name = name
        self.heard = now
        self._loop = asyncio.get_running_loop()
        self._limit: asyncio.Timeout | None = limit

    def hear(self) -> None:
        """Note that its replica works: a delta has come, or a report."""
        self.heard = self._loop.time()

    def lose(self) -> None:
        """Make `Watchdog.watch` raise."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self._loop.time())

    def leave(self) -> None:
        """Forget the task: where that is cancelled, its error would refer to itself, until a garbage collection."""
        self._limit = None


class Watchdog:
    """Asks the replicas periodically, and gives those up that do not reply or whose engines stand still.

    A replica that does not reply and is heard nevertheless is slow, and keeps its requests.
    timeout_s: how long a replica may take to reply. The time in which this process itself does not run does not count.
    """

    def __init__(self, replicas: Reporting, timeout_s: float) -> None:
        self._replicas = replicas
        self._timeout_s = timeout_s
        self._numbers = count()
        self._watched: dict[str, Watched] = {}
        self._known: set[str] = set()  # names of the replicas that have replied
        self._ending: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def watch(self, request_id: str) -> AsyncIterator[Watched]:
        """Raise ReplicaLostError in the block when the replica that works on a request is given up.

        The request must have the yielded `name` as its id.
        """
        name = f"{request_id}/{next(self._numbers)}"
        limit = asyncio.timeout(None)
        try:
            async with limit:
                watched = self._watched[name] = Watched(name, asyncio.get_running_loop().time(), limit)
                try:
                    yield watched
                finally:
                    del self._watched[name]
                    watched.leave()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ReplicaLostError("the replica has stopped working") from error

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            try:
                await self.check()
            except Exception:  # there are no replicas now, or the controller restarts
                logger.debug("The replicas could not be asked.", exc_info=True)

    async def check(self) -> None:
        """Ask all replicas once, and wait for their replies for a limited time.

        A request is lost if meanwhile no delta of it has come, no reply names it, and at least one replica is frozen:
        it is that one which has the request, or was to take it. Where all reply, it still waits for a replica.
        """
        begun = asyncio.get_running_loop().time()
        replies = [asyncio.ensure_future(self._hear(report)) for report in await self._replicas.reports()]
        if not replies:
            return
        for _ in range(_WAITS):
            done, silent = await asyncio.wait(replies, timeout=self._timeout_s / _WAITS)
            if not silent:
                break
        for task in silent:
            task.cancel()
        replied = {name for task in done if (name := task.result())}
        known = (self._known | self._replicas.running()) - replied if silent else frozenset()
        # In the second half of the wait: one that froze during the first must not be asked once more.
        frozen = [replica for replica in known if not self._replicas.was_heard(replica, self._timeout_s / 2)]
        if frozen:
            for watched in list(self._watched.values()):
                if watched.heard < begun:
                    watched.lose()
            for replica in frozen:
                self._replace(replica, f"it has not replied for {self._timeout_s:g} s")
        self._known = replied | self._known if silent else replied

    async def _hear(self, report: Awaitable[ReplicaReport]) -> str | None:
        """Take a replica's report, and return its name; None if it is dead, which its requests learn themselves."""
        try:
            reported = await report
        except Exception:
            return None
        for engine_id in reported.requests:
            watched = self._watched.get(engine_id.rpartition("/")[0])
            if watched is not None:
                (watched.lose if reported.stalled else watched.hear)()
        if reported.stalled:
            self._replace(reported.replica, reported.stalled)
        return reported.replica

    def _replace(self, replica: str, reason: str) -> None:
        if replica in self._ending:
            return
        logger.error("%s has stopped working (%s): its requests move, and it is replaced.", replica, reason)
        task = self._ending[replica] = asyncio.create_task(self._replicas.replace_if_stopped(replica))
        task.add_done_callback(lambda _: self._ending.pop(replica))
