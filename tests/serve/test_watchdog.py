"""Replicas that freeze or stall without dying: their requests move, and no others do."""

import asyncio
import time
from collections.abc import Awaitable, Sequence

import pytest
from garbage import leaving_at_most

from mpt_serve.deployments.watchdog import ReplicaLostError, ReplicaReport, Watchdog

TIMEOUT_S = 0.01  # only replicas that never reply let it pass


class Replica:
    """A Generator replica: works, is frozen (says nothing), slow (replies too late), stalled (no steps) or dead."""

    def __init__(self, name: str, state: str = "works") -> None:
        self.name = name
        self.state = state
        self.requests: list[str] = []

    async def report(self) -> ReplicaReport:
        if self.state in ("frozen", "slow"):
            await asyncio.Event().wait()
        if self.state == "dead":
            raise ConnectionError
        return ReplicaReport(self.name, list(self.requests), "no step for 60 s" if self.state == "stalled" else "")


class Replicas:
    """All of them, with a link each; remembers which were replaced."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = replicas
        self.replaced: list[str] = []

    async def reports(self) -> Sequence[Awaitable[ReplicaReport]]:
        return [replica.report() for replica in self.replicas]

    def running(self) -> set[str]:
        return {replica.name for replica in self.replicas}

    def was_heard(self, replica: str, seconds: float) -> bool:
        assert seconds == TIMEOUT_S / 2
        return all(other.state not in ("frozen", "dead") for other in self.replicas if other.name == replica)

    async def replace_if_stopped(self, replica: str) -> None:
        self.replaced.append(replica)


class Request:
    """A request that runs on a replica until that is given up, or for ever."""

    def __init__(self, watchdog: Watchdog, replica: Replica | None, name: str = "r") -> None:
        self.heard = asyncio.Event()
        self.task = asyncio.create_task(self._run(watchdog, replica, name))

    async def _run(self, watchdog: Watchdog, replica: Replica | None, name: str) -> None:
        async with watchdog.watch(name) as watched:
            if replica is not None:
                replica.requests.append(f"{watched.name}/abcd")  # as `ReplicaClient` names it in the engine
            while True:
                await self.heard.wait()
                self.heard.clear()
                watched.hear()

    @property
    def lost(self) -> bool:
        return self.task.done() and isinstance(self.task.exception(), ReplicaLostError)


async def settle() -> None:
    """Let everything that can run without waiting for time run."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_requests_of_a_frozen_replica_are_lost_and_it_is_replaced() -> None:
    works, freezes = Replica("a"), Replica("b")
    replicas = Replicas(works, freezes)

    async def scenario() -> None:
        watchdog = Watchdog(replicas, TIMEOUT_S)
        kept, moved = Request(watchdog, works), Request(watchdog, freezes)
        await settle()
        await watchdog.check()
        await settle()
        assert (kept.lost, moved.lost, replicas.replaced) == (False, False, [])
        freezes.state = "frozen"
        await watchdog.check()
        await settle()
        assert (kept.lost, moved.lost, replicas.replaced) == (False, True, ["b"])
        await watchdog.check()  # until it is dead
        await settle()
        assert (kept.lost, replicas.replaced) == (False, ["b", "b"])
        kept.task.cancel()

    asyncio.run(scenario())


def test_a_request_that_no_replica_has_taken_is_lost_with_a_frozen_one_only() -> None:
    replica = Replica("a")

    async def scenario() -> None:
        watchdog = Watchdog(Replicas(Replica("b"), replica), TIMEOUT_S)
        waits = Request(watchdog, None)
        await settle()
        for _ in range(5):  # all have more to do than they can
            await watchdog.check()
        assert not waits.task.done()
        replica.state = "frozen"  # perhaps while it was handed over
        await watchdog.check()
        await settle()
        assert waits.lost

    asyncio.run(scenario())


def test_a_replica_that_is_only_slow_keeps_its_requests() -> None:
    slow = Replica("a", "slow")
    replicas = Replicas(slow, Replica("b"))

    async def scenario() -> None:
        watchdog = Watchdog(replicas, TIMEOUT_S)
        request, waits = Request(watchdog, slow), Request(watchdog, None)
        await settle()
        for _ in range(3):
            await watchdog.check()
        await settle()
        assert (request.task.done(), waits.task.done(), replicas.replaced) == (False, False, [])
        slow.state = "frozen"
        await watchdog.check()
        await settle()
        assert (request.lost, replicas.replaced) == (True, ["a"])  # although it has never replied

    asyncio.run(scenario())


def test_time_in_which_the_watchdog_itself_stands_still_does_not_count() -> None:
    replica = Replica("a")
    replicas = Replicas(replica)

    async def scenario() -> None:
        watchdog = Watchdog(replicas, TIMEOUT_S)
        request = Request(watchdog, replica)
        await settle()
        replica.state = "frozen"
        checking = asyncio.create_task(watchdog.check())
        await settle()
        time.sleep(2 * TIMEOUT_S)  # as long as this process is stopped, or waits for a core
        for _ in range(3):
            await asyncio.sleep(0)
        assert not checking.done()
        assert not request.task.done()
        await checking
        await settle()
        assert request.lost

    asyncio.run(scenario())


def test_a_delta_meanwhile_proves_that_the_replica_works() -> None:
    replica = Replica("a", "frozen")  # or only its replies are late

    async def scenario() -> None:
        watchdog = Watchdog(Replicas(replica), TIMEOUT_S)
        request = Request(watchdog, replica)
        await settle()
        checking = asyncio.create_task(watchdog.check())
        await settle()
        request.heard.set()
        await checking
        await settle()
        assert not request.task.done()
        request.task.cancel()

    asyncio.run(scenario())


def test_requests_of_an_engine_that_stands_still_are_lost_at_once() -> None:
    works, stalls = Replica("a"), Replica("b", "stalled")
    replicas = Replicas(works, stalls)

    async def scenario() -> None:
        watchdog = Watchdog(replicas, 60)
        kept, moved = Request(watchdog, works), Request(watchdog, stalls)
        await settle()
        await watchdog.check()
        await settle()
        assert (kept.lost, moved.lost, replicas.replaced) == (False, True, ["b"])
        kept.task.cancel()

    asyncio.run(scenario())


def test_a_dead_replica_and_no_replica_are_none_of_its_business() -> None:
    dead = Replica("a", "dead")
    replicas = Replicas(dead)

    async def scenario() -> None:
        watchdog = Watchdog(replicas, TIMEOUT_S)
        request = Request(watchdog, dead)  # Ray tells it
        await settle()
        await watchdog.check()
        replicas.replicas = ()
        await watchdog.check()
        await settle()
        assert (request.task.done(), replicas.replaced) == (False, [])
        request.task.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [TimeoutError(), KeyError("x")])
def test_what_a_request_raises_itself_stays(error: Exception) -> None:
    async def scenario() -> None:
        async with Watchdog(Replicas(), TIMEOUT_S).watch("r"):
            raise error

    with pytest.raises(type(error)) as caught:
        asyncio.run(scenario())
    assert caught.value is error


def test_a_cancelled_request_leaves_nothing_to_the_garbage_collector() -> None:
    """Batches have many requests, and their garbage would be collected while all streams stop."""

    async def scenario() -> None:
        watchdog = Watchdog(Replicas(), TIMEOUT_S)

        async def request() -> None:
            async with watchdog.watch("r") as watched:
                watched.hear()
                await asyncio.Event().wait()

        with leaving_at_most(19):
            for _ in range(20):
                task = asyncio.create_task(request())
                await settle()
                task.cancel()
                await settle()
                del task

    asyncio.run(scenario())
