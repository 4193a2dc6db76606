"""Which replicas take requests, as Serve's controller reports it to the routers of requests.

The state of an application (`serve status`, the REST API) lists no deployments while a new version of it is built, and
after a build that failed, although all replicas of the last version run and take requests. What the controller sends to
routers has no such gaps, and arrives within milliseconds of each change.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import serve
from ray.serve._private.common import DeploymentID
from ray.serve._private.long_poll import LongPollClient, LongPollNamespace
from ray.serve.context import _get_global_client

from mpt_serve.deployments.version import Version

__all__ = ["ReplicaUpdates", "RunningReplica"]


@dataclass(frozen=True)
class RunningReplica:
    """A replica that takes requests: at most `max_requests` at once.

    version: None for one of an older release. name: of its actor.
    """

    max_requests: int
    version: Version | None
    name: str = ""


class ReplicaUpdates:
    """The running replicas of some deployments of the calling replica's application.

    replicas: those of each deployment by its name; a deployment that has never had one is missing, and a deployment
        whose replicas have all gone has none. count: updates so far.
    """

    def __init__(self, deployments: Sequence[str]) -> None:
        self._deployments = deployments
        self.replicas: dict[str, Sequence[RunningReplica]] = {}
        self.count = 0
        self._changed = asyncio.Event()
        self._client: LongPollClient | None = None

    async def wait(self, seen: int, timeout_s: float) -> None:
        """Wait for another update than the first `seen`, for `timeout_s` seconds at most."""
        self._keep_subscribed()
        changed = self._changed
        if self.count == seen:
            try:
                async with asyncio.timeout(timeout_s):
                    await changed.wait()
            except TimeoutError:
                pass

    def _keep_subscribed(self) -> None:
        """Subscribe, again if the subscription has ended with the controller's process."""
        if self._client is not None and self._client.is_running:
            return
        application = serve.get_replica_context().app_name
        listeners = {
            (LongPollNamespace.DEPLOYMENT_TARGETS, DeploymentID(name, application)): partial(self._take, name)
            for name in self._deployments
        }
        controller = _get_global_client()._controller
        self._client = LongPollClient(controller, listeners, asyncio.get_running_loop(), client_id="mpt_serve")

    def _take(self, name: str, targets: Any) -> None:
        self.replicas[name] = [_running_replica(info) for info in targets.running_replicas]
        self.count += 1
        self._changed.set()
        self._changed = asyncio.Event()


def _running_replica(info: Any) -> RunningReplica:
    metadata: Mapping[str, Any] = info.replica_metadata
    return RunningReplica(info.max_ongoing_requests, Version.from_metadata(metadata), info.actor_name)
