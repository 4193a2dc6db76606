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
from mpt_serve.deployments.replica_updates import ReplicaUpdates, RunningReplica
from mpt_serve.deployments.signs_of_life import SignsOfLife
from mpt_serve.deployments.start_report import LoadingStage, furthest_stage
from mpt_serve.deployments.version import Version
from mpt_serve.openai.backend import Readiness

__all__ = ["DeploymentState", "ReplicaWatch", "Waiting", "deployment_states"]

logger = logging.getLogger("ray.serve")

_LOADING_PERIOD_S = 0.5  # between two checks, if no update comes
_READY_PERIOD_S = 0.25
_STATS_WAIT_S = 5.0
_REPEAT_LOG_S = 60.0

_LOADING = "The model is loading."
_REPLACED = Readiness(ready=False, reason="Another model is being deployed.", code="loading", retry_after_s=1)
_NEEDED = ("Tokenizer", "Generator")  # deployments without which no request is served


@dataclass(frozen=True)
class Waiting:
    """How long requests wait for a replica while the last one is replaced, and how many at most."""

    timeout_s: float
    max_requests: int


class ReplicaWatch:
    """Follows the Tokenizer's and the Generator's replicas.

    What is not known changes nothing: a deployment counts as without replicas only when Serve has reported so.

    updates, signs: of both.
    version: of the calling replica; a replica of another model cannot serve its requests.
    on_loaded: called with `Generator.stats()` each time they become available; readiness follows it.
    on_capacity: called at each check with the number of requests that Serve may have at once for the Generator's
        replicas.
    """

    def __init__(
        self,
        generator: DeploymentHandle,
        updates: ReplicaUpdates,
        signs: SignsOfLife,
        version: Version,
        waiting: Waiting,
        on_loaded: Callable[[dict[str, object]], None],
        on_capacity: Callable[[int], None],
    ) -> None:
        self._generator = generator
        self._updates = updates
        self._signs = signs
        self._version = version
        self._waiting = waiting
        self._on_loaded = on_loaded
        self._on_capacity = on_capacity
        self._settled = asyncio.Event()  # it is ready, or never will be again
        self._waiting_requests = 0
        self._reported: tuple[str, float] = ("", 0.0)
        self.readiness = Readiness(ready=False, reason=_LOADING)
        self.has_served = False  # or continues what other replicas have served

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            seen = self._updates.count
            await self.check()
            await self._updates.wait(seen, _READY_PERIOD_S if self.readiness.ready else _LOADING_PERIOD_S)

    async def check(self) -> None:
        """Bring the readiness up to date. Where this fails, the last known state stays."""
        try:
            await self._check()
        except Exception:  # the controller restarts or a node is lost
            logger.warning("The state of the replicas could not be read.", exc_info=True)

    async def wait_ready(self) -> Readiness:
        """Return the readiness; while the last replica of a deployment is replaced, wait for the next, bounded.

        Where the next ones have another model, there is nothing to wait for.
        """
        if self._settled.is_set() or not self.has_served or self._waiting_requests >= self._waiting.max_requests:
            return self.readiness
        self._waiting_requests += 1
        try:
            async with asyncio.timeout(self._waiting.timeout_s):
                await self._settled.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting_requests -= 1
        return self.readiness

    @property
    def model_was_replaced(self) -> bool:
        """Return whether all Generators that run have another model than this replica's settings name."""
        replicas = self._updates.replicas.get("Generator", ())
        return bool(replicas) and not self.usable("Generator")

    def usable(self, deployment: str) -> list[RunningReplica]:
        """Return the running replicas of this replica's model; one of an older release does not name its model."""
        replicas = self._updates.replicas.get(deployment, ())
        return [r for r in replicas if r.version is None or r.version.model == self._version.model]

    async def _check(self) -> None:
        missing = [name for name in _NEEDED if not self.usable(name)]
        silent = [name for name in _NEEDED if not self._replying(name)]
        generators = self._replying("Generator")
        # One more than each runs, so that Serve sees a queue and its autoscaling knows that they are full.
        if generators:
            self._on_capacity(sum(replica.max_requests + 1 for replica in generators))
        if missing:
            if self.readiness.ready:
                self._set_ready(False)
            if self.model_was_replaced:
                self.readiness = _REPLACED
                self._settled.set()
                return
            self._settled.clear()
            states = await asyncio.to_thread(deployment_states)
            state = states.get(missing[-1])
            reason = await asyncio.to_thread(_why_not_running, missing[-1], state)
            self._report(reason)
            stage = None if reason or state is None else await asyncio.to_thread(furthest_stage, state.starting)
            self.readiness = Readiness(ready=False, reason=reason or _LOADING) if stage is None else _at(stage)
        elif silent:  # stopped or lost, and not replaced yet
            self._set_ready(False)
            self.readiness = Readiness(ready=False, reason=f"No {silent[-1]} replies.", code="loading")
        elif not self.readiness.ready:
            async with asyncio.timeout(_STATS_WAIT_S):  # a replica may stop at any moment
                self._on_loaded(await self._generator.stats.remote())
            self._set_ready(True)
            logger.info("Ready: the Generator replies.")

    def _replying(self, deployment: str) -> list[RunningReplica]:
        """Return the usable replicas that have not fallen silent."""
        return [replica for replica in self.usable(deployment) if not self._signs.is_silent(replica.name)]

    def _set_ready(self, ready: bool) -> None:
        self.readiness = replace(self.readiness, ready=ready, reason="" if ready else _LOADING, stage="", progress=None)
        if ready:
            self.has_served = True
            self._settled.set()
        else:
            self._settled.clear()

    def _report(self, reason: str) -> None:
        """Log a reason once, and again from time to time while it lasts."""
        now = asyncio.get_running_loop().time()
        if reason and (reason != self._reported[0] or now - self._reported[1] > _REPEAT_LOG_S):
            logger.error(reason)
            self._reported = (reason, now)


@dataclass(frozen=True)
class DeploymentState:
    """One deployment at one moment.

    running: replicas that take requests. starting: names of those that do not yet. config: its options in Serve's own
        form. message: the problem that Serve reports, empty for none.
    """

    running: int
    config: Mapping[str, Any]
    message: str
    starting: tuple[str, ...] = ()


def deployment_states() -> dict[str, DeploymentState]:
    """Return the state of each deployment of the calling replica's application that Serve knows yet, by its name.

    Serve lists none while it builds another version of the application, and after a build that failed.
    Blocks for one call to the controller: call it from a worker thread.
    """
    application = serve.get_replica_context().app_name
    # The public `serve.status()` leaves the options out; the REST API has them, but may be disabled.
    details = _get_global_client().get_serve_details()
    deployments = details["applications"].get(application, {}).get("deployments", {})
    return {name: _state(deployment) for name, deployment in deployments.items()}


def _state(deployment: Mapping[str, Any]) -> DeploymentState:
    running = sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
    starting = tuple(replica["replica_id"] for replica in deployment["replicas"] if replica["state"] == "STARTING")
    return DeploymentState(running, deployment["deployment_config"], deployment["message"] or "", starting)


def _at(stage: LoadingStage) -> Readiness:
    """Return the readiness of a server whose Generator has come so far with its start."""
    reason = f"The model is loading: {stage.name}, {stage.part:.0%}."
    return Readiness(ready=False, reason=reason, stage=stage.name, progress=round(stage.part, 3))


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
