"""Whether requests would be served, and if not, why: kept up to date in the background, answered from memory."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from mpt_serve.deployments.placement import replica_demands, unmet_demand
from mpt_serve.openai.backend import Readiness

__all__ = ["DeploymentState", "ReplicaWatch"]

logger = logging.getLogger("ray.serve")

_LOADING_PERIOD_S = 0.5
_READY_PERIOD_S = 5.0
_REPEAT_LOG_S = 60.0

_NEEDED = ("Tokenizer", "Generator")  # deployments without which no request is served


class ReplicaWatch:
    """Follows the Tokenizer's and the Generator's replicas.

    on_loaded: called with `Generator.stats()` each time they become available; readiness follows it.
    on_capacity: called at each check with the number of requests that Serve may have at once for the Generator's
        replicas.
    """

    def __init__(
        self,
        generator: DeploymentHandle,
        on_loaded: Callable[[dict[str, object]], None],
        on_capacity: Callable[[int], None],
    ) -> None:
        self._generator = generator
        self._on_loaded = on_loaded
        self._on_capacity = on_capacity
        self._reported: tuple[str, float] = ("", 0.0)
        self.readiness = Readiness(ready=False, reason="The model is loading.", code="loading")

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self._check()
            except Exception:  # the controller restarts or a node is lost: keep the last known state
                logger.warning("The state of the replicas could not be read.", exc_info=True)
            await asyncio.sleep(_READY_PERIOD_S if self.readiness.ready else _LOADING_PERIOD_S)

    async def _check(self) -> None:
        states = await asyncio.to_thread(deployment_states)
        missing = [name for name in _NEEDED if name not in states or states[name].running == 0]
        if missing:
            reason = await asyncio.to_thread(_why_not_running, missing[-1], states.get(missing[-1]))
            self._report(reason)
            self.readiness = Readiness(ready=False, reason=reason or "The model is loading.", code="loading")
            return
        generator = states["Generator"]
        # One more than each runs, so that Serve sees a queue and its autoscaling knows that they are full.
        self._on_capacity(generator.running * (generator.config["max_ongoing_requests"] + 1))
        if not self.readiness.ready:
            self._on_loaded(await self._generator.stats.remote())
            self.readiness = replace(self.readiness, ready=True, reason="")
            logger.info("Ready: the Generator replies.")

    def _report(self, reason: str) -> None:
        """Log a reason once, and again from time to time while it lasts."""
        now = asyncio.get_running_loop().time()
        if reason and (reason != self._reported[0] or now - self._reported[1] > _REPEAT_LOG_S):
            logger.error(reason)
            self._reported = (reason, now)


@dataclass(frozen=True)
class DeploymentState:
    """One deployment at one moment.

    running: replicas that take requests. config: its options in Serve's own form. message: the problem that Serve
        reports, empty for none.
    """

    running: int
    config: Mapping[str, Any]
    message: str


def deployment_states() -> dict[str, DeploymentState]:
    """Return the state of each deployment of the calling replica's application that Serve knows yet, by its name.

    Blocks for one call to the controller: call it from a worker thread.
    """
    application = serve.get_replica_context().app_name
    # The public `serve.status()` leaves the options out; the REST API has them, but may be disabled.
    details = _get_global_client().get_serve_details()
    deployments = details["applications"].get(application, {}).get("deployments", {})
    return {name: _state(deployment) for name, deployment in deployments.items()}


def _state(deployment: Mapping[str, Any]) -> DeploymentState:
    running = sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
    return DeploymentState(running, deployment["deployment_config"], deployment["message"] or "")


def cluster_nodes() -> list[dict[str, Any]]:
    """Return `ray.nodes()`: every node with its total resources and its labels."""
    nodes: list[dict[str, Any]] = ray.nodes()
    return nodes


def _why_not_running(name: str, state: DeploymentState | None) -> str:
    """Return what keeps a deployment from running, empty if it is still starting."""
    if state is None:
        return ""
    unmet = unmet_demand(name, replica_demands(state.config), cluster_nodes())
    if unmet is not None:
        return unmet
    # The message is a constructor's traceback, which Serve logs; it may name folders, which clients must not see.
    return f"The {name} does not start; the server's log says why." if "Error" in state.message else ""
