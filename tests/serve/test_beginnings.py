"""A client's requests begin one after the other while others have fewer: counted, without a server."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mpt_serve.deployments import beginnings
from mpt_serve.deployments.beginnings import Beginning, Beginnings


class Scene:
    """Requests that begin and stay so until the test ends that. begun: their places, by the order of their turns."""

    def __init__(self) -> None:
        self.now = 100.0
        self.beginnings = Beginnings(lambda: self.now)
        self.begun: dict[str, list[Beginning]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def send(self, client: str, count: int = 1) -> None:
        self.tasks += [asyncio.create_task(self._begin(client)) for _ in range(count)]
        await asyncio.sleep(0)

    async def _begin(self, client: str) -> None:
        place = await self.beginnings.begin(client)
        self.begun.setdefault(client, []).append(place)

    async def read(self, client: str, number: int) -> None:
        """An Ingress has read a request, which does not end with that."""
        self.begun[client][number].begun()
        await asyncio.sleep(0)

    async def end(self, client: str, number: int) -> None:
        self.begun[client][number].end()
        await asyncio.sleep(0)

    def count(self, client: str) -> int:
        return len(self.begun.get(client, ()))


def run(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    asyncio.run(scenario(Scene()))  # type: ignore[arg-type]


def test_one_client_alone_is_not_limited() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("only", 100)
        assert scene.count("only") == 100

    run(scenario)


def test_a_client_with_many_requests_delays_its_own_alone() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("light")
        await scene.end("light", 0)
        await scene.send("heavy", 10)
        assert scene.count("heavy") == 1
        await scene.send("light", 7)  # fewer than the other has
        assert scene.count("light") == 8
        for number in range(9):
            assert scene.count("heavy") == 1 + number
            await scene.read("heavy", number)
            await scene.read("heavy", number)  # does nothing
        assert scene.count("heavy") == 10
        await scene.send("light", 4)  # as many, and one more
        assert scene.count("light") == 11
        for number in range(10):
            await scene.end("heavy", number)
            await scene.end("heavy", number)  # does nothing
        assert scene.count("light") == 11

    run(scenario)


def test_those_that_began_before_there_was_another_are_counted() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("heavy", 10)
        await scene.send("light")
        await scene.send("heavy")
        for number in range(9):
            await scene.end("heavy", number)
            assert scene.count("heavy") == 10
        await scene.end("heavy", 9)
        assert scene.count("heavy") == 11

    run(scenario)


def test_those_that_leave_while_they_wait_take_no_place() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("light")
        await scene.send("heavy", 4)
        waiting = scene.tasks[2:]
        waiting[0].cancel()
        await asyncio.sleep(0)
        scene.begun["heavy"][0].end()  # for the second, which leaves before it knows
        waiting[1].cancel()
        await asyncio.gather(*scene.tasks, return_exceptions=True)
        assert [task.cancelled() for task in waiting] == [True, True, False]
        assert scene.count("heavy") == 2

    run(scenario)


def test_a_while_after_its_last_request_a_client_counts_no_longer() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("gone")
        await scene.send("heavy", 2)
        assert scene.count("heavy") == 1
        scene.now += 11
        await scene.send("heavy", 5)
        assert scene.count("heavy") == 6
        for number in range(6):
            await scene.end("heavy", number)
        assert scene.count("heavy") == 7
        await scene.end("gone", 0)
        await scene.send("heavy")
        assert list(scene.beginnings._clients) == ["heavy"]

    run(scenario)


def test_a_request_that_takes_long_keeps_the_next_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "_LONGEST_S", 0.0)

    async def scenario(scene: Scene) -> None:
        await scene.send("light")
        await scene.send("heavy", 3)
        await asyncio.gather(*scene.tasks)

    run(scenario)
