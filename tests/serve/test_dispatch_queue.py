"""The order of an Ingress replica's requests: slots are never lost, priorities and begun requests come first."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mpt_serve.deployments.dispatch_queue import DispatchQueue


class Requests:
    """Tasks that wait for a slot, record when they have it, and hold it until they are finished."""

    def __init__(self, queue: DispatchQueue) -> None:
        self._queue = queue
        self._finished: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.running: list[str] = []

    async def add(self, name: str, priority: int = 0, begun: bool = False) -> None:
        finished = self._finished[name] = asyncio.Event()

        async def run() -> None:
            async with self._queue.slot(priority, begun):
                self.running.append(name)
                await finished.wait()
                self.running.remove(name)

        self._tasks[name] = asyncio.create_task(run())
        await settle()

    async def finish(self, name: str) -> None:
        self._finished[name].set()
        await settle()

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    async def order(self) -> list[str]:
        """Finish one after the other; return the order in which they had started."""
        order = []
        while self.running:
            order.append(self.running[0])
            await self.finish(self.running[0])
        return order


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def scenario(capacity: int) -> Callable[[Callable[[Requests, DispatchQueue], Awaitable[None]]], None]:
    def run(story: Callable[[Requests, DispatchQueue], Awaitable[None]]) -> None:
        async def main() -> None:
            queue = DispatchQueue(capacity)
            await story(Requests(queue), queue)

        asyncio.run(main())

    return run


def test_first_come_first_served_except_for_priorities() -> None:
    @scenario(capacity=1)
    async def _(requests: Requests, queue: DispatchQueue) -> None:
        for name, priority in {"a": 0, "b": 0, "later": 1, "sooner": -1, "c": 0}.items():
            await requests.add(name, priority)
        assert await requests.order() == ["a", "sooner", "b", "c", "later"]


def test_sixteen_arrivals_are_worth_one_priority() -> None:
    @scenario(capacity=1)
    async def _(requests: Requests, queue: DispatchQueue) -> None:
        await requests.add("running")
        await requests.add("polite", priority=1)
        for i in range(20):
            await requests.add(f"{i}")
        order = await requests.order()
        assert order.index("polite") == 1 + 15  # the sixteenth to arrive after it has the same rank


def test_begun_requests_go_first() -> None:
    @scenario(capacity=1)
    async def _(requests: Requests, queue: DispatchQueue) -> None:
        await requests.add("a")
        await requests.add("urgent", priority=-1000)
        await requests.add("begun", begun=True)
        assert await requests.order() == ["a", "begun", "urgent"]


def test_requests_that_leave_while_they_wait_take_no_slot() -> None:
    @scenario(capacity=1)
    async def _(requests: Requests, queue: DispatchQueue) -> None:
        for name in ("a", "b", "c"):
            await requests.add(name)
        requests.cancel("b")
        await settle()
        assert await requests.order() == ["a", "c"]
        await requests.add("d")
        assert requests.running == ["d"]


@pytest.mark.parametrize("cancel_first", [True, False])
def test_a_slot_given_to_a_request_that_leaves_at_that_moment_is_not_lost(cancel_first: bool) -> None:
    @scenario(capacity=0)
    async def _(requests: Requests, queue: DispatchQueue) -> None:
        await requests.add("a")
        await requests.add("b")
        steps = [lambda: requests.cancel("a"), lambda: queue.resize(1)]
        for step in steps if cancel_first else reversed(steps):
            step()
        await settle()
        assert requests.running == ["b"]
        assert await requests.order() == ["b"]


def test_capacity_follows_the_replicas() -> None:
    @scenario(capacity=1)
    async def _(requests: Requests, queue: DispatchQueue) -> None:
        for name in ("a", "b", "c"):
            await requests.add(name)
        queue.resize(3)
        await settle()
        assert requests.running == ["a", "b", "c"]
        queue.resize(1)
        await requests.add("d")
        for name in ("a", "b"):
            await requests.finish(name)
            assert "d" not in requests.running
        await requests.finish("c")
        assert requests.running == ["d"]
