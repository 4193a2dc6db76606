"""When a replica of a new version may take requests.

Serve replaces the replicas of each deployment on its own, and each old replica leaves when a new one is healthy. An
Ingress or a Tokenizer starts in a second, a Generator in minutes or never: without waiting for it, they would replace
the running ones for a version that may not start.
"""

import asyncio
import logging
from collections.abc import Iterable

from mpt_serve.deployments.readiness import deployment_states
from mpt_serve.deployments.replica_updates import ReplicaUpdates, RunningReplica
from mpt_serve.deployments.version import Version

__all__ = ["Takeover"]

logger = logging.getLogger("ray.serve")

_FIRST_UPDATE_S = 5.0  # for Serve to report replicas that run, at most
_LOOK_PERIOD_S = 2.0


class Takeover:
    """Decides when a starting replica may take over from those of its deployment that run with other settings.

    deployment: of the starting replica. needed: deployments that must run with the same settings by then.
    """

    def __init__(self, deployment: str, needed: Iterable[str], version: Version, updates: ReplicaUpdates) -> None:
        self._deployment = deployment
        self._needed = tuple(needed)
        self._version = version
        self._updates = updates
        self.replaces = False

    async def wait(self) -> None:
        """Return when the needed deployments run with this version's settings, or no replica runs to take over from.

        `replaces` then says whether there was one.
        """
        await self._first_updates()
        while self._predecessors() and not self._needed_run():
            if not self.replaces:
                logger.info("Waiting for %s with the new settings.", " and ".join(self._needed))
                self.replaces = True
            await self._updates.wait(self._updates.count, _LOOK_PERIOD_S)
        self.replaces = self.replaces or bool(self._predecessors())

    async def _first_updates(self) -> None:
        """Wait until Serve has reported each deployment of which it knows running replicas."""
        try:
            states = await asyncio.to_thread(deployment_states)
        except Exception:  # the controller restarts: its reports to routers decide
            logger.warning("The state of the replicas could not be read.", exc_info=True)
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _FIRST_UPDATE_S
        # While Serve builds yet another version it lists nothing, and one report shows that there are replicas.
        followed = (self._deployment, *self._needed)
        expected = {name for name in followed if name in states and states[name].running} or {self._deployment}
        if states and not any(state.running for state in states.values()):
            return  # the first start of the application
        while not expected <= self._updates.replicas.keys() and loop.time() < deadline:
            await self._updates.wait(self._updates.count, deadline - loop.time())

    def _predecessors(self) -> bool:
        return any(replica.version != self._version for replica in self._running(self._deployment))

    def _needed_run(self) -> bool:
        return all(any(r.version == self._version for r in self._running(name)) for name in self._needed)

    def _running(self, deployment: str) -> Iterable[RunningReplica]:
        return self._updates.replicas.get(deployment, ())
