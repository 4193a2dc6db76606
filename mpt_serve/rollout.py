"""How Serve replaces the Generator's replicas by those of a new version, decided when the application is built."""

from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray._private.utils import get_used_memory
from ray.serve.context import _get_global_client

from mpt_serve.resources import ClusterNode, Machine, surge_percent

__all__ = ["generator_surge_percent"]


def generator_surge_percent(args: Mapping[str, Any], replica_memory: int) -> int:
    """Return `max_surge_percent` of the Generator: 100, or 0 if the cluster cannot hold one replica more.

    args: of the application that is being built. replica_memory: bytes that a replica needs at least on a CPU.
    A value in the configuration's `deployments` has precedence over this.
    """
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if client is None:  # a builder outside a cluster, such as `serve build`
        return 100
    name, options = _deployed(client.get_serve_details(), args)
    nodes = _nodes()
    memory = (0, 0)
    if len(nodes) == 1 and not {"GPU", "TPU"} & set(nodes[0].total):
        memory = (replica_memory, Machine.here().memory - int(get_used_memory()))
    return surge_percent(options, nodes, _running_generators(name), memory)


def _deployed(details: Mapping[str, Any], args: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the name of the application with these args, and what its configuration says of the Generator."""
    for name, application in details["applications"].items():
        config = application.get("deployed_app_config") or {}
        if (config.get("args") or {}) == dict(args):
            named = (item for item in config.get("deployments") or () if item["name"] == "Generator")
            return name, next(named, {})
    return "", {}


def _nodes() -> list[ClusterNode]:
    available = available_resources_per_node()
    return [
        ClusterNode(node["Resources"], available.get(node["NodeID"], {}), node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]


def _running_generators(application: str) -> int:
    prefix = f"SERVE_REPLICA::{application}#Generator#"
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sum(str(actor["name"]).startswith(prefix) for actor in actors)
