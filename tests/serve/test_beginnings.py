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

    async def begin(self, client: str, number: int) -> None:
        """The response to a request begins."""
        self.begun[client][number].begun()
        await asyncio.sleep(0)

    async def read(self, client: str, number: int) -> None:
        """An Ingress has read a request, which does not end with that."""
        self.begun[client][number].read()
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
            await scene.begin("heavy", number)
            await scene.begin("heavy", number)  # does nothing
        await scene.send("light", 3)  # the first beside the heavy client's one, then one after the other
        assert scene.count("light") == 2
        await scene.begin("heavy", 4)
        assert scene.count("heavy") == 5
        for number in range(1, 4):
            assert scene.count("light") == 1 + number
            await scene.begin("light", number)
        assert scene.count("light") == 4
        for number in range(5, 24):
            assert scene.count("heavy") == 1 + number
            await scene.begin("heavy", number)
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
            await scene.begin(begins, number)
        assert all(abs(order[:length].count("a") - order[:length].count("b")) <= 2 for length in range(60))

    run(scenario)


def test_a_client_that_was_away_goes_first_for_a_few_requests_alone() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("away")
        await scene.end("away", 0)
        await scene.send("stays", 200)
        for number in range(100):
            await scene.begin("stays", number)
        await scene.send("away", 100)
        await scene.begin("stays", 100)
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
        await scene.begin("light", 0)
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
        await scene.begin("gone", 0)
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


async def many_and_few(scene: Scene) -> None:
    """Bring 24 requests of one client that have begun, and one that waits, and one of another that begins."""
    await scene.send("many", 24)
    await scene.send("few")
    await scene.send("many")
    assert (scene.count("many"), scene.count("few")) == (24, 1)
    for number in range(24):
        await scene.begin("many", number)


def test_a_client_with_few_requests_keeps_its_place_until_the_response_begins() -> None:
    async def scenario(scene: Scene) -> None:
        await many_and_few(scene)
        await scene.send("few", 2)
        await scene.read("few", 0)
        assert (scene.count("many"), scene.count("few")) == (24, 1)
        await scene.begin("few", 0)
        assert (scene.count("many"), scene.count("few")) == (24, 2)
        await scene.read("few", 1)
        await scene.read("few", 1)  # does nothing
        await scene.end("few", 1)
        await scene.end("few", 2)
        assert (scene.count("many"), scene.count("few")) == (25, 3)

    run(scenario)


def test_it_keeps_it_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "_HOLD_S", 0.001)

    async def scenario(scene: Scene) -> None:
        await many_and_few(scene)
        await scene.read("few", 0)
        assert scene.count("many") == 24
        await asyncio.wait_for(scene.tasks[-1], 30)
        assert scene.count("many") == 25

    run(scenario)


def test_it_does_not_keep_it_from_many_others_of_its_kind() -> None:
    async def scenario(scene: Scene) -> None:
        await many_and_few(scene)
        await scene.send("few", beginnings._HOLDS + 1)
        await scene.read("few", 0)
        assert scene.count("few") == 2
        await scene.read("few", 1)  # has few enough behind it
        assert scene.count("few") == 2

    run(scenario)


def test_the_other_client_leaves_a_pause_after_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "_PAUSE_S", 0.2)

    async def scenario(scene: Scene) -> None:
        await many_and_few(scene)
        await scene.end("few", 0)
        await scene.send("many")
        assert scene.count("many") == 25
        await scene.read("many", 24)
        assert scene.count("many") == 25
        await scene.send("few")  # need not wait
        assert scene.count("few") == 2
        await scene.end("few", 1)
        await asyncio.wait_for(scene.tasks[-2], 30)
        assert scene.count("many") == 26

    run(scenario)


def test_clients_with_as_many_requests_leave_none() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.send("a", 1)
        await scene.send("b", 8)
        await scene.send("a", 7)
        for _ in range(16):
            begins = next(place for client in "ab" for place in scene.begun[client] if place._begins)
            begins.read()
            await asyncio.sleep(0)
        assert (scene.count("a"), scene.count("b")) == (8, 8)

    run(scenario)


def test_a_client_that_begins_as_often_as_the_other_has_no_few_requests() -> None:
    """Each sends its next request when it has a response: sooner responses make more of them."""

    async def scenario(scene: Scene) -> None:
        await many_and_few(scene)
        assert scene.beginnings.hold_s(scene.beginnings._clients["many"]) == beginnings._PAUSE_S
        assert scene.beginnings.hold_s(scene.beginnings._clients["few"]) == beginnings._HOLD_S
        await scene.end("few", 0)
        await scene.begin("many", 24)
        for number in range(1, beginnings._LAST):
            await scene.send("few")
            await scene.end("few", number)
        assert scene.beginnings.hold_s(scene.beginnings._clients["many"]) == 0
        assert scene.beginnings.hold_s(scene.beginnings._clients["few"]) == 0

    run(scenario)
