"""Whether requests would be served, and if not, why: kept up to date in the background, answered from memory."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from ray.serve.handle import DeploymentHandle

from mpt_serve.deployments.placement import replica_demands, unmet_demand
from mpt_serve.deployments.serve_state import DeploymentState, cluster_nodes, deployment_states
from mpt_serve.openai.backend import Readiness

__all__ = ["ReplicaWatch"]

logger = logging.getLogger("ray.serve")

_LOADING_PERIOD_S = 0.5
_READY_PERIOD_S = 5.0
_REPEAT_LOG_S = 60.0

_NEEDED = ("Tokenizer", "Generator")  # deployments without which no request is served


class ReplicaWatch:
    """Follows the Tokenizer's and the Generator's replicas from start to end.

    on_loaded: called with `Generator.stats()` each time they begin to answer; readiness follows it.
    on_places: called at each look with the requests that Serve may have at once for the Generator's replicas.
    """

    def __init__(
        self,
        generator: DeploymentHandle,
        on_loaded: Callable[[dict[str, object]], None],
        on_places: Callable[[int], None],
    ) -> None:
        self._generator = generator
        self._on_loaded = on_loaded
        self._on_places = on_places
        self._reported: tuple[str, float] = ("", 0.0)
        self.readiness = Readiness(ready=False, reason="The model is loading.", code="loading")

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self._look()
            except Exception:  # the controller restarts, a node goes: look again
                logger.warning("The state of the replicas could not be read.", exc_info=True)
            await asyncio.sleep(_READY_PERIOD_S if self.readiness.ready else _LOADING_PERIOD_S)

    async def _look(self) -> None:
        states = await asyncio.to_thread(deployment_states)
        missing = [name for name in _NEEDED if name not in states or states[name].running == 0]
        if missing:
            reason = await asyncio.to_thread(_why_not_running, missing[-1], states.get(missing[-1]))
            self._report(reason)
            self.readiness = Readiness(ready=False, reason=reason or "The model is loading.", code="loading")
            return
        generator = states["Generator"]
        # One more than each takes, so that Serve sees a queue and its autoscaling knows that they are full.
        self._on_places(generator.running * (generator.config["max_ongoing_requests"] + 1))
        if not self.readiness.ready:
            self._on_loaded(await self._generator.stats.remote())
            self.readiness = replace(self.readiness, ready=True, reason="")
            logger.info("Ready: the Generator answers.")

    def _report(self, reason: str) -> None:
        """Log a reason once, and again from time to time while it lasts."""
        now = asyncio.get_running_loop().time()
        if reason and (reason != self._reported[0] or now - self._reported[1] > _REPEAT_LOG_S):
            logger.error(reason)
            self._reported = (reason, now)


def _why_not_running(name: str, state: DeploymentState | None) -> str:
    """Return what keeps a deployment from running, empty when it just takes its time."""
    if state is None:
        return ""
    unmet = unmet_demand(name, replica_demands(state.config), cluster_nodes())
    if unmet is not None:
        return unmet
    # The message is a constructor's traceback, which Serve logs; it may name folders, which are no client's business.
    return f"The {name} does not start; the server's log says why." if "Error" in state.message else ""
