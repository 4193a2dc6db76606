"""What a Generator replica needs, against what a machine or a cluster has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpt_serve.configuration.problems import Path, Problem
from mpt_serve.deployments.placement import Demand, replica_demands

__all__ = ["ClusterNode", "Machine", "resource_problems", "surge_percent"]

_DEFAULT_OPTIONS = {"num_cpus": 1}  # as in `mpt_serve.app`


@dataclass(frozen=True)
class Machine:
    """A single machine. resources: by Ray's names. memory: bytes in all. available: those that nothing uses now."""

    resources: Mapping[str, float]
    memory: int
    available: int = 2**62

    @classmethod
    def here(cls) -> "Machine":
        """Return what Ray finds on this machine."""
        from ray._common.utils import get_system_memory
        from ray._private.accelerators import get_all_accelerator_managers
        from ray._private.utils import get_num_cpus, get_used_memory

        resources = {"CPU": float(get_num_cpus())}
        for manager in get_all_accelerator_managers():  # several makers' are named GPU
            name, number = manager.get_resource_name(), manager.get_current_node_num_accelerators()
            resources[name] = max(resources.get(name, 0.0), float(number))
        memory = int(get_system_memory())
        return cls({**resources, "memory": float(memory)}, memory, max(0, memory - int(get_used_memory())))


@dataclass(frozen=True)
class ClusterNode:
    """A node of a cluster. total, available: resources by Ray's names, now."""

    total: Mapping[str, float]
    available: Mapping[str, float]
    labels: Mapping[str, str]


def resource_problems(
    application: Mapping[str, Any], path: Path, machine: Machine, memory_problem: str | None
) -> Iterator[Problem]:
    """Find deployments whose replicas can never run on this machine.

    application: in the form of the Serve configuration. memory_problem: why its memory cannot hold a Generator.
    """
    generator_on_accelerator = False
    for number, deployment in enumerate(application.get("deployments") or ()):
        if deployment["name"] != "Generator":
            continue
        demands = [_without_type(demand) for demand in _demands(deployment)]
        generator_on_accelerator = any({"GPU", "TPU"} & set(demand.resources) for demand in demands)
        replicas = _replicas(deployment)
        place = (*path, "deployments", number)
        fitting = _fitting(demands, [ClusterNode(machine.resources, machine.resources, {})], replicas)
        if fitting < replicas and all(not demand.labels for demand in demands):
            needed = ", ".join(f"{{{demand}}}" for demand in demands)
            names = dict.fromkeys(name for demand in demands for name in demand.resources)
            has = ", ".join(f"{name}: {machine.resources.get(name, 0):g}" for name in names)
            yield Problem(
                place,
                f"{replicas} replicas of {needed} do not fit on this machine, which has {{{has}}}: change num_replicas"
                " or ray_actor_options (for a cluster, check with --for-cluster)",
            )
    if memory_problem is not None and not generator_on_accelerator:
        yield Problem((*path, "args", "model"), memory_problem)


def surge_percent(
    deployment: Mapping[str, Any], nodes: Sequence[ClusterNode], running: int, memory: tuple[int, int]
) -> int:
    """Return how Serve replaces Generator replicas: 100, a new one starts first, or 0, the old one stops first.

    The old one stops first only where that helps: where the cluster could hold the replicas, but not one more.
    deployment: its options in the Serve configuration. running: replicas that run now. memory: bytes that a replica
    needs on a CPU, and that are free there; 0 where unknown.
    """
    demands = _demands(deployment)
    more = 1 if running else _replicas(deployment) + 1
    empty = [ClusterNode(node.total, node.total, node.labels) for node in nodes]
    if not _fitting(demands, empty, 1):
        return 100  # no node can hold it at all: what runs must not stop for it
    needed, free = memory
    if needed and free and needed * more > free:
        return 0
    return 100 if _fitting(demands, nodes, more) >= more else 0


def _demands(deployment: Mapping[str, Any]) -> list[Demand]:
    options = deployment.get("ray_actor_options")
    return replica_demands({**deployment, "ray_actor_options": {**_DEFAULT_OPTIONS, **(options or {})}})


def _without_type(demand: Demand) -> Demand:
    """Return the demand without the accelerator's type, which Ray determines when it starts."""
    resources = {n: amount for n, amount in demand.resources.items() if not n.startswith("accelerator_type:")}
    return Demand(resources, demand.labels)


def _replicas(deployment: Mapping[str, Any]) -> int:
    scaling = deployment.get("autoscaling_config")
    number = scaling.get("min_replicas", 1) if isinstance(scaling, Mapping) else deployment.get("num_replicas")
    return number if isinstance(number, int) and number > 0 else 1


def _fitting(demands: Sequence[Demand], nodes: Sequence[ClusterNode], at_most: int) -> int:
    """Return how many replicas find what they need, each demand on the first node that has it left."""
    left = [dict(node.available) for node in nodes]
    for count in range(at_most):
        for demand in demands:
            for node, resources in zip(nodes, left, strict=True):
                if demand.fits({"Resources": resources, "Labels": node.labels}):
                    for name, amount in demand.resources.items():
                        resources[name] -= amount
                    break
            else:
                return count
    return at_most
