"""Calls that an Ingress makes over links; see `encode_link`."""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

from mpt_serve.deployments.link_receiver import Connection
from mpt_serve.errors import EngineClosedError

__all__ = ["LinkCalls"]


class LinkCalls:
    """The calls whose replies have not come yet. Belongs to one event loop."""

    def __init__(self) -> None:
        self._numbers = count()
        self._waiting: dict[int, tuple[Connection, asyncio.Future[Any]]] = {}

    def waiting(self, connection: Connection) -> int:
        """Return the number of calls on a connection."""
        return sum(own is connection for own, _ in self._waiting.values())

    async def call(self, connection: Connection, method: str, arguments: Sequence[Any]) -> Any:
        """Return the reply. Raises EngineClosedError when the connection is lost.

        TypeError, ValueError and OverflowError mean that the arguments cannot be sent this way.
        """
        number = next(self._numbers)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        connection.send((number, method, arguments))
        self._waiting[number] = connection, reply
        try:
            return await reply
        finally:
            del self._waiting[number]

    def take(self, replies: Iterable[tuple[int, Any]]) -> None:
        """Take replies, each with the number of its call. Nobody may wait for them any more."""
        for number, value in replies:
            waiting = self._waiting.get(number)
            if waiting is not None and not waiting[1].done():
                waiting[1].set_result(value)

    def lose(self, connection: Connection) -> None:
        """Fail the calls on a connection that is lost."""
        for own, reply in self._waiting.values():
            if own is connection and not reply.done():
                reply.set_exception(EngineClosedError("the connection to the replica was lost"))
