"""Several streams as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["merged"]

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    error: Exception | None = None


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Yield what the streams yield, as it comes. Raises the first exception of any.

    However it ends, all streams are closed before it has. A stream waits while its last item has not been taken.
    """
    items: asyncio.Queue[T | _End] = asyncio.Queue(maxsize=len(streams))

    async def pump(stream: AsyncGenerator[T, None]) -> None:
        end = _End()
        try:
            async with aclosing(stream):
                async for item in stream:
                    await items.put(item)
        except Exception as error:
            end = _End(error)
        await items.put(end)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    running = len(pumps)
    try:
        while running:
            item = await items.get()
            if not isinstance(item, _End):
                yield item
                continue
            if item.error is not None:
                raise item.error
            running -= 1
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
