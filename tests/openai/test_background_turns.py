"""When requests in the background begin."""

import asyncio
from itertools import pairwise

import pytest

from mpt_serve.openai import background_turns
from mpt_serve.openai.background_turns import BackgroundTurns


@pytest.fixture(autouse=True)
def _times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_turns, "_SPACING_S", 0.02)
    monkeypatch.setattr(background_turns, "_LOOK_S", 0.001)
    monkeypatch.setattr(background_turns, "_PATIENCE_S", 3600.0)


class Requests:
    """Requests in the background, and the times at which they began."""

    def __init__(self, count: int) -> None:
        self.load = 0
        self.begun: list[float] = []
        self._turns = BackgroundTurns(lambda: self.load)
        self.tasks = [asyncio.create_task(self._request()) for _ in range(count)]

    async def _request(self) -> None:
        await self._turns.wait()
        self.begun.append(asyncio.get_running_loop().time())

    async def all_begin(self) -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(*self.tasks, return_exceptions=True)


def test_they_begin_one_after_the_other() -> None:
    async def scenario() -> list[float]:
        requests = Requests(4)
        await requests.all_begin()
        return requests.begun

    begun = asyncio.run(scenario())
    assert all(after - before >= 0.019 for before, after in pairwise(begun))


def test_none_begins_while_others_are_here() -> None:
    async def scenario() -> None:
        requests = Requests(3)
        await asyncio.sleep(0.005)
        assert len(requests.begun) == 1
        requests.load = 2
        await asyncio.sleep(0.1)
        assert len(requests.begun) == 1
        requests.load = 0
        await requests.all_begin()
        assert len(requests.begun) == 3

    asyncio.run(scenario())


def test_where_others_are_always_here_one_begins_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_turns, "_PATIENCE_S", 0.01)

    async def scenario() -> None:
        requests = Requests(3)
        requests.load = 1
        await requests.all_begin()
        assert len(requests.begun) == 3

    asyncio.run(scenario())


def test_one_that_is_cancelled_keeps_none_waiting() -> None:
    async def scenario() -> None:
        requests = Requests(4)
        requests.load = 1
        await asyncio.sleep(0.005)
        requests.tasks[0].cancel()  # its turn has come
        requests.tasks[2].cancel()
        await asyncio.sleep(0.005)
        requests.load = 0
        await requests.all_begin()
        assert len(requests.begun) == 2

    asyncio.run(scenario())
