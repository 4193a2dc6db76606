"""How an Ingress replica ends: what runs gets a limited time, and whatever is left then ends with an error."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import ray
from starlette.types import ASGIApp, Receive, Scope, Send

from mpt_serve.openai.backend import Readiness
from mpt_serve.openai.errors import ShuttingDownError

__all__ = ["Drain", "follow_replica_end", "graceful_shutdown_timeout_s", "run_until_end", "serve_replica"]

logger = logging.getLogger("ray.serve")

_RETRY_AFTER_S = 30  # until another server is there, or this one again
_LOOK_PERIOD_S = 0.5
_MARGIN_S = 3.0  # for the last events to reach their clients before Serve ends the process


class Drain:
    """Follows the requests of an Ingress replica to their ends. Belongs to one event loop.

    responses: HTTP requests that have not been answered to the last byte.
    """

    def __init__(self) -> None:
        self.responses = 0
        self._refuses = False
        self._deadline: float | None = None  # on the loop's clock
        self._limits: set[asyncio.Timeout] = set()

    @property
    def readiness(self) -> Readiness | None:
        """Return why new requests are refused; None while they are not."""
        if not self._refuses:
            return None
        return Readiness(False, "The server is shutting down.", "shutting_down", _RETRY_AFTER_S)

    @property
    def ends(self) -> bool:
        """Return whether this replica takes no new requests, or ends within some time."""
        return self._refuses or self._deadline is not None

    def refuse(self) -> None:
        """Refuse new requests from now on, with 503 `shutting_down`."""
        self._refuses = True

    def end_within(self, seconds: float) -> None:
        """End the requests that have not finished after some seconds, with an error; those to come, too."""
        deadline = asyncio.get_running_loop().time() + seconds
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        if self._limits:
            logger.info("Shutting down: %d requests may run for %.0f s more.", len(self._limits), seconds)
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(self._deadline)

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Raise ShuttingDownError in the block at the deadline."""
        limit = asyncio.timeout_at(self._deadline)
        try:
            async with limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError as error:
            if not limit.expired():
                raise
            message = "The server shut down before the request had finished."
            raise ShuttingDownError(message, retry_after_s=_RETRY_AFTER_S) from error

    def following(self, app: ASGIApp) -> ASGIApp:
        """Return the application, with its responses counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            counts = scope["type"] == "http"  # not "lifespan", which lasts as long as the process
            self.responses += counts
            try:
                await app(scope, receive, send)
            finally:
                self.responses -= counts

        return counted


async def follow_replica_end(drain: Drain) -> None:
    """Wait until Serve stops this replica, then let the requests run for as long as Serve waits for them.

    Serve sends a replica that it stops no new requests, so that none has to be refused.
    """
    replica = serve_replica()
    while not replica._shutting_down:
        await asyncio.sleep(_LOOK_PERIOD_S)
    seconds = graceful_shutdown_timeout_s()
    drain.end_within(max(seconds - _MARGIN_S, seconds / 2))


async def run_until_end(work: Coroutine[Any, Any, None], drain: Drain) -> None:
    """Run something until this replica begins to end: other replicas may take it over at once."""
    task = asyncio.ensure_future(work)
    try:
        while not drain.ends and not task.done():
            await asyncio.wait([task], timeout=_LOOK_PERIOD_S)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def graceful_shutdown_timeout_s() -> float:
    """Return how long Serve waits for the requests of this replica before it ends the process."""
    return float(serve_replica()._deployment_config.graceful_shutdown_timeout_s)


def serve_replica() -> Any:
    """Return Serve's own object in this process: Serve tells a replica nothing of its end."""
    worker = ray._private.worker.global_worker
    return worker.actors[worker.actor_id]._replica_impl
