"""The order of an Ingress replica's requests: places are never lost, priorities and begun requests come first."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mpt_serve.deployments.dispatch_queue import DispatchQueue


class Visitors:
    """Tasks that wait for a place, say when they have it, and stay until they are told to leave."""

    def __init__(self, queue: DispatchQueue) -> None:
        self._queue = queue
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.inside: list[str] = []

    async def come(self, name: str, priority: int = 0, begun: bool = False) -> None:
        leave = self._leave[name] = asyncio.Event()

        async def visit() -> None:
            async with self._queue.place(priority, begun):
                self.inside.append(name)
                await leave.wait()
                self.inside.remove(name)

        self._tasks[name] = asyncio.create_task(visit())
        await settle()

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await settle()

    def cancel(self, name: str) -> None:
        self._tasks[name].cancel()

    async def order(self) -> list[str]:
        """Let one leave after the other; return in which order they had come in."""
        order = []
        while self.inside:
            order.append(self.inside[0])
            await self.leave(self.inside[0])
        return order


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def scenario(places: int) -> Callable[[Callable[[Visitors, DispatchQueue], Awaitable[None]]], None]:
    def run(story: Callable[[Visitors, DispatchQueue], Awaitable[None]]) -> None:
        async def main() -> None:
            queue = DispatchQueue(places)
            await story(Visitors(queue), queue)

        asyncio.run(main())

    return run


def test_first_come_first_served_but_for_priorities() -> None:
    @scenario(places=1)
    async def _(visitors: Visitors, queue: DispatchQueue) -> None:
        for name, priority in {"a": 0, "b": 0, "later": 1, "sooner": -1, "c": 0}.items():
            await visitors.come(name, priority)
        assert await visitors.order() == ["a", "sooner", "b", "c", "later"]


def test_sixteen_arrivals_are_worth_one_priority() -> None:
    @scenario(places=1)
    async def _(visitors: Visitors, queue: DispatchQueue) -> None:
        await visitors.come("inside")
        await visitors.come("polite", priority=1)
        for i in range(20):
            await visitors.come(f"{i}")
        order = await visitors.order()
        assert order.index("polite") == 1 + 15  # the sixteenth to come after it has the same rank


def test_what_has_begun_goes_first() -> None:
    @scenario(places=1)
    async def _(visitors: Visitors, queue: DispatchQueue) -> None:
        await visitors.come("a")
        await visitors.come("urgent", priority=-1000)
        await visitors.come("begun", begun=True)
        assert await visitors.order() == ["a", "begun", "urgent"]


def test_those_who_leave_while_they_wait_take_no_place() -> None:
    @scenario(places=1)
    async def _(visitors: Visitors, queue: DispatchQueue) -> None:
        for name in ("a", "b", "c"):
            await visitors.come(name)
        visitors.cancel("b")
        await settle()
        assert await visitors.order() == ["a", "c"]
        await visitors.come("d")
        assert visitors.inside == ["d"]


@pytest.mark.parametrize("cancel_first", [True, False])
def test_a_place_given_to_somebody_who_leaves_at_that_moment_is_not_lost(cancel_first: bool) -> None:
    @scenario(places=0)
    async def _(visitors: Visitors, queue: DispatchQueue) -> None:
        await visitors.come("a")
        await visitors.come("b")
        steps = [lambda: visitors.cancel("a"), lambda: queue.resize(1)]
        for step in steps if cancel_first else reversed(steps):
            step()
        await settle()
        assert visitors.inside == ["b"]
        assert await visitors.order() == ["b"]


def test_places_come_and_go_with_replicas() -> None:
    @scenario(places=1)
    async def _(visitors: Visitors, queue: DispatchQueue) -> None:
        for name in ("a", "b", "c"):
            await visitors.come(name)
        queue.resize(3)
        await settle()
        assert visitors.inside == ["a", "b", "c"]
        queue.resize(1)
        await visitors.come("d")
        for name in ("a", "b"):
            await visitors.leave(name)
            assert "d" not in visitors.inside
        await visitors.leave("c")
        assert visitors.inside == ["d"]
