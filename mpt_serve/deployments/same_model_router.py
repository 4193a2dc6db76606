"""Routing of requests to replicas of the caller's model.

While Serve replaces a model by another one, replicas of both run for a moment, and an Ingress of the old one may be the
last of its version. Its ids mean other text to the new model.
"""

from typing import ClassVar

from ray.serve._private.common import RunningReplicaInfo
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter

from mpt_serve.deployments.version import Version

__all__ = ["ROUTER", "SameModelRouter"]

ROUTER = f"{__name__}:SameModelRouter"  # the import path, as Serve's `request_router_config` takes it


class SameModelRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Ray is not typed
    """Serve's default router over those replicas that have the model of this process.

    model: of this process; None takes all replicas, as does a replica of an older release, which does not say its own.
    """

    model: ClassVar[str | None] = None

    def _update_running_replicas(self, running_replicas: list[RunningReplicaInfo]) -> None:
        super()._update_running_replicas([info for info in running_replicas if self._serves(info)])

    def _serves(self, info: RunningReplicaInfo) -> bool:
        version = Version.from_metadata(info.replica_metadata)
        return self.model is None or version is None or version.model == self.model
