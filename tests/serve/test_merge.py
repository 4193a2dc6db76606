import asyncio
from collections.abc import AsyncGenerator

import pytest

from mpt_serve.deployments.merge import merged


class Stream:
    """Yields its items, then raises or waits; knows whether it was closed."""

    def __init__(self, *items: int, error: Exception | None = None, hangs: bool = False) -> None:
        self._items, self._error, self._hangs = items, error, hangs
        self.closed = False

    async def run(self) -> AsyncGenerator[int, None]:
        try:
            for item in self._items:
                yield item
                await asyncio.sleep(0)
            if self._hangs:
                await asyncio.Event().wait()
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


def test_everything_comes_and_each_streams_items_in_order() -> None:
    async def scenario() -> list[int]:
        return [item async for item in merged([Stream(1, 2, 3).run(), Stream().run(), Stream(11, 12).run()])]

    items = asyncio.run(scenario())
    assert [item for item in items if item < 10] == [1, 2, 3]
    assert [item for item in items if item > 10] == [11, 12]


def test_an_exception_closes_the_others() -> None:
    waits = Stream(1, hangs=True)

    async def scenario() -> None:
        async for _ in merged([waits.run(), Stream(2, error=KeyError("broken")).run()]):
            pass

    with pytest.raises(KeyError, match="broken"):
        asyncio.run(scenario())
    assert waits.closed


def test_closing_closes_all() -> None:
    streams = [Stream(1, hangs=True), Stream(2, hangs=True)]

    async def scenario() -> None:
        both = merged([stream.run() for stream in streams])
        await anext(both)
        await anext(both)
        await both.aclose()
        assert all(stream.closed for stream in streams)

    asyncio.run(scenario())
