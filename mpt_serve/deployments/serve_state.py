"""What Serve's controller knows of the deployments of this application."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve

__all__ = ["DeploymentState", "cluster_nodes", "deployment_states"]


@dataclass(frozen=True)
class DeploymentState:
    """One deployment, at one moment.

    running: replicas that take requests. config: its options in Serve's own form. message: what Serve says is wrong.
    """

    running: int
    config: Mapping[str, Any]
    message: str


def deployment_states() -> dict[str, DeploymentState]:
    """Return the state of each deployment of the calling replica's application that Serve knows yet, by its name.

    Blocks for one call to the controller; meant for a thread of a replica.
    """
    application = serve.get_replica_context().app_name
    # The public `serve.status()` leaves the options out; the REST API has them, but may be switched off.
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()
    deployments = details["applications"].get(application, {}).get("deployments", {})
    return {name: _state(deployment) for name, deployment in deployments.items()}


def _state(deployment: Mapping[str, Any]) -> DeploymentState:
    running = sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
    return DeploymentState(running, deployment["deployment_config"], deployment["message"] or "")


def cluster_nodes() -> list[dict[str, Any]]:
    """Return `ray.nodes()`: every node with its resources in total and its labels."""
    nodes: list[dict[str, Any]] = ray.nodes()
    return nodes
