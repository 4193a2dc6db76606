"""Calls to replicas one by one, which a handle of Serve's does not offer."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence, Set
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mpt_serve.deployments.link_receiver import LinkReceiver
from mpt_serve.deployments.replica_updates import ReplicaUpdates
from mpt_serve.deployments.signs_of_life import SignsOfLife
from mpt_serve.deployments.watchdog import ReplicaReport

__all__ = ["GeneratorReplicas", "Replicas"]

logger = logging.getLogger("ray.serve")

_NO_REQUEST = -1  # the number of a link's address that is for no request
_REPLY_WAIT_S = 10.0
_LAST_CHECK_S = 5.0


class Replicas:
    """All replicas of a deployment that take requests."""

    def __init__(self, deployment: DeploymentHandle) -> None:
        self._deployment = deployment

    async def ask(self, method: str) -> list[Any]:
        """Return what the replicas return that reply in time."""
        replies = [asyncio.ensure_future(reply) for reply in await self.call(method)]
        if not replies:
            return []
        done, silent = await asyncio.wait(replies, timeout=_REPLY_WAIT_S)
        for task in silent:
            task.cancel()
        return [task.result() for task in replies if task in done and task.exception() is None]

    async def call(self, method: str, *args: object) -> list[Awaitable[Any]]:
        """Call all replicas, and return their results to come: one that does not reply must not hide the others."""
        try:
            # `results_async`, the public way, returns nothing at all if one replica does not reply in time.
            results = await self._deployment.broadcast(method, *args)._fetch_replica_results_async()
        except RayServeException:  # there are no replicas now
            return []
        return [result.get_async() for result in results]


class GeneratorReplicas:
    """All Generator replicas that take requests; implements `watchdog.Generators`.

    updates: says which run. receiver: of their links. signs: what is heard on these.
    """

    def __init__(
        self, generator: DeploymentHandle, updates: ReplicaUpdates, receiver: LinkReceiver, signs: SignsOfLife
    ) -> None:
        self._replicas = Replicas(generator)
        self._updates = updates
        self._receiver = receiver
        self._signs = signs

    async def stats(self) -> list[dict[str, Any]]:
        """Return the engine's counters of every replica that replies in time."""
        return await self._replicas.ask("stats")

    async def reports(self) -> Sequence[Awaitable[ReplicaReport]]:
        """Ask all replicas for their reports."""
        address = await self._receiver.address(_NO_REQUEST)
        return [self._noted(reply) for reply in await self._replicas.call("report", address)]

    def running(self) -> Set[str]:
        """Return the names of the replicas that take requests."""
        return {replica.name for replica in self._updates.replicas.get("Generator", ())}

    def was_heard(self, replica: str, seconds: float) -> bool:
        """Return whether a replica has sent something on its link within some seconds."""
        return self._signs.heard_within(replica, seconds)

    async def replace_if_stopped(self, replica: str) -> None:
        """End a replica's process unless it passes a last health check; Serve notices and starts another."""
        try:
            actor = await asyncio.to_thread(ray.get_actor, replica, SERVE_NAMESPACE)
        except ValueError:  # it has ended already
            return
        if not await _is_healthy(actor):
            logger.error("%s is ended: it fails its health check.", replica)
            await asyncio.to_thread(ray.kill, actor)

    async def _noted(self, reply: Awaitable[ReplicaReport]) -> ReplicaReport:
        """Return a report, and note which link the replica has."""
        report = await reply
        if report.link is not None:
            self._signs.note(report.replica, report.link)
        self._signs.keep({report.replica, *self.running()})
        return report


async def _is_healthy(actor: ActorHandle) -> bool:
    """Ask a replica itself: one that Serve is stopping is not among those that take requests, and works."""
    try:
        await asyncio.wait_for(actor.check_health.remote(), _LAST_CHECK_S)
    except RayActorError:  # it has just ended
        return True
    except (RayError, TimeoutError):
        return False
    return True
