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


def test_a_client_of_which_fewer_have_begun_goes_first() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("light")
        await scene.end("light", 0)
        await scene.send("heavy", 24)
        for number in range(4):
            assert scene.count("heavy") == 1 + number
            await scene.read("heavy", number)
            await scene.read("heavy", number)  # does nothing
        await scene.send("light", 3)  # the first beside the heavy client's one, then one after the other
        assert scene.count("light") == 2
        await scene.read("heavy", 4)
        assert scene.count("heavy") == 5
        for number in range(1, 4):
            assert scene.count("light") == 1 + number
            await scene.read("light", number)
        assert scene.count("light") == 4
        for number in range(5, 24):
            assert scene.count("heavy") == 1 + number
            await scene.read("heavy", number)
            await scene.end("heavy", number)
            await scene.end("heavy", number)  # does nothing
        assert scene.count("heavy") == 24

    run(scenario)


def test_clients_that_always_have_more_take_turns() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("a", 1)
        await scene.send("b", 40)
        await scene.send("a", 39)
        order = []
        for _ in range(60):
            begins = next(client for client in "ab" if any(place._begins for place in scene.begun.get(client, ())))
            number = next(number for number, place in enumerate(scene.begun[begins]) if place._begins)
            order.append(begins)
            await scene.read(begins, number)
        assert all(abs(order[:length].count("a") - order[:length].count("b")) <= 2 for length in range(60))

    run(scenario)


def test_a_client_that_was_away_goes_first_for_a_few_requests_alone() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("away")
        await scene.end("away", 0)
        await scene.send("stays", 200)
        for number in range(100):
            await scene.read("stays", number)
        await scene.send("away", 100)
        await scene.read("stays", 100)
        for _ in range(60):
            for client in ("away", "stays"):
                for place in list(scene.begun[client]):
                    place.begun()
                    await asyncio.sleep(0)
        assert scene.count("away") - 1 <= scene.count("stays") - 101 + beginnings._AHEAD + 2

    run(scenario)


def test_those_that_began_before_there_was_another_are_counted() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("heavy", 10)
        await scene.send("light")
        await scene.send("heavy")
        await scene.read("light", 0)
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
        await scene.read("gone", 0)
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
