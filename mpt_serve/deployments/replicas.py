"""Calls to replicas one by one, which a handle of Serve's does not offer."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence, Set
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mpt_serve.deployments.link_receiver import Connection, LinkReceiver
from mpt_serve.deployments.replica_updates import ReplicaUpdates, RunningReplica
from mpt_serve.deployments.signs_of_life import SignsOfLife
from mpt_serve.deployments.watchdog import ReplicaReport

__all__ = ["Replicas", "WatchedReplicas", "own_names"]

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


class WatchedReplicas:
    """All replicas of the Tokenizer or the Generator that take requests; implements `watchdog.Reporting`.

    name: of the deployment, which `deployment` is a handle of. updates: says which replicas run. receiver: of their
    links. signs: what is heard on these.
    """

    def __init__(
        self,
        name: str,
        deployment: DeploymentHandle,
        updates: ReplicaUpdates,
        receiver: LinkReceiver,
        signs: SignsOfLife,
    ) -> None:
        self._name = name
        self._replicas = Replicas(deployment)
        self._updates = updates
        self._receiver = receiver
        self._signs = signs
        self._taking_texts: set[str] = set()

    async def stats(self) -> list[dict[str, Any]]:
        """Return what `Generator.stats` of every replica returns that replies in time."""
        return await self._replicas.ask("stats")

    async def reports(self) -> Sequence[Awaitable[ReplicaReport]]:
        """Ask all replicas for their reports."""
        address = await self._receiver.address(_NO_REQUEST)
        return [self._noted(reply) for reply in await self._replicas.call("report", address)]

    def running(self) -> Set[str]:
        """Return the names of the replicas that take requests."""
        return {replica.name for replica in self._updates.replicas.get(self._name, ())}

    def taking_texts(self, usable: Sequence[RunningReplica]) -> Sequence[Connection]:
        """Return the connections of those replicas, of the usable ones, that take texts to encode there."""
        found = [self._signs.connection(replica.name) for replica in usable if replica.name in self._taking_texts]
        return [connection for connection in found if connection is not None]

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
            if report.takes_texts:
                self._taking_texts.add(report.replica)
        running = {replica.name for replicas in self._updates.replicas.values() for replica in replicas}
        self._signs.keep({report.replica, *running})
        self._taking_texts &= {report.replica, *running}
        return report


def own_names() -> tuple[str, str]:
    """Return the name of the calling replica, and that of its actor."""
    try:
        replica_id = serve.get_replica_context().replica_id
    except RayServeException:  # outside Serve
        return "local", "local"
    return str(replica_id.unique_id), str(replica_id.to_full_id_str())


async def _is_healthy(actor: ActorHandle) -> bool:
    """Ask a replica itself: one that Serve is stopping is not among those that take requests, and works."""
    try:
        await asyncio.wait_for(actor.check_health.remote(), _LAST_CHECK_S)
    except RayActorError:  # it has just ended
        return True
    except (RayError, TimeoutError):
        return False
    return True
