"""What Serve tells a replica of its own end: nothing, so that is read from Serve's own object in this process."""

import asyncio
from typing import Any

import ray

from mpt_serve.deployments.drain import Drain

__all__ = ["follow_replica_end", "graceful_shutdown_timeout_s"]

_LOOK_PERIOD_S = 0.5
_MARGIN_S = 3.0  # for the last events to reach their clients before Serve ends the process


async def follow_replica_end(drain: Drain) -> None:
    """Wait until Serve stops this replica, then let the requests run for as long as Serve waits for them.

    Serve sends a replica that it stops no new requests, so that none has to be refused.
    """
    replica = _serve_replica()
    while not replica._shutting_down:
        await asyncio.sleep(_LOOK_PERIOD_S)
    seconds = graceful_shutdown_timeout_s()
    drain.end_within(max(seconds - _MARGIN_S, seconds / 2))


def graceful_shutdown_timeout_s() -> float:
    """Return how long Serve waits for the requests of this replica before it ends the process."""
    return float(_serve_replica()._deployment_config.graceful_shutdown_timeout_s)


def _serve_replica() -> Any:
    worker = ray._private.worker.global_worker
    return worker.actors[worker.actor_id]._replica_impl
