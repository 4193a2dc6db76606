"""When requests that nobody waits for begin, in a process that others go through too."""

import asyncio
from collections.abc import Callable

__all__ = ["BackgroundTurns"]

_SPACING_S = 0.01  # between two beginnings, each of which takes some milliseconds of several processes
_LOOK_S = 0.003  # between two looks at whether others are here
_PATIENCE_S = 0.2  # that one waits for others to end: the engine prefers those in any case


class BackgroundTurns:
    """Lets requests begin one after the other, while no others are here. Belongs to one event loop.

    Requests that run together often end together. If the next ones began together too, whoever comes then would wait
    for all of them.

    load: returns how many requests are here that somebody waits for.
    """

    def __init__(self, load: Callable[[], int]) -> None:
        self._load = load
        self._turn = asyncio.Lock()
        self._next_at = 0.0  # on the loop's clock

    async def wait(self) -> None:
        """Return when the calling request may begin."""
        now = asyncio.get_running_loop().time
        async with self._turn:
            await asyncio.sleep(self._next_at - now())
            latest = now() + _PATIENCE_S
            while self._load() and now() < latest:
                await asyncio.sleep(_LOOK_S)
            self._next_at = now() + _SPACING_S
