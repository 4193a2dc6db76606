"""Why no node can hold a replica: what it requires, and what the nodes of the cluster offer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Demand", "replica_demands", "unmet_demand"]

_ACTOR_OPTIONS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
_SHOWN_NODES = 8


@dataclass(frozen=True)
class Demand:
    """What a replica requires of one node: resources by Ray's names, memory in bytes."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def fits(self, node: Mapping[str, Any]) -> bool:
        """Return whether the node (an entry of `ray.nodes()`) could hold the replica if nothing else ran there."""
        offered = node.get("Resources") or {}
        enough = all(offered.get(name, 0) >= amount for name, amount in self.resources.items())
        # Operators such as `!value` or `in(...)` are left to Ray; a plain value is compared here.
        labels = node.get("Labels") or {}
        return enough and all(
            labels.get(name) == value for name, value in self.labels.items() if value.replace("-", "").isalnum()
        )

    def __str__(self) -> str:
        parts = [f"{name}: {amount:g}" for name, amount in self.resources.items()]
        return ", ".join(parts + [f"label {name}={value}" for name, value in self.labels.items()])


def replica_demands(deployment_config: Mapping[str, Any]) -> list[Demand]:
    """Return what one replica requires, from the deployment's options as Serve's controller reports them."""
    bundles: Sequence[Mapping[str, float]] | None = deployment_config.get("placement_group_bundles")
    if bundles:
        if deployment_config.get("placement_group_strategy") == "STRICT_PACK":
            bundles = [{name: sum(b.get(name, 0) for b in bundles) for name in {n for b in bundles for n in b}}]
        return [Demand({name: amount for name, amount in bundle.items() if amount}) for bundle in bundles]
    options = deployment_config.get("ray_actor_options") or {}
    resources = {name: options[key] for key, name in _ACTOR_OPTIONS.items() if options.get(key)}
    resources |= {name: amount for name, amount in (options.get("resources") or {}).items() if amount}
    if options.get("accelerator_type"):
        resources[f"accelerator_type:{options['accelerator_type']}"] = 0.001  # how Ray marks a node's accelerator type
    return [Demand(resources, options.get("label_selector") or {})]


def unmet_demand(deployment: str, demands: Iterable[Demand], nodes: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why no node can ever hold a replica, and what to do about it; None if one can."""
    alive = [node for node in nodes if node.get("Alive")]
    for demand in demands:
        if not any(demand.fits(node) for node in alive):
            return (
                f"No node of the cluster can hold a {deployment} replica: it needs {{{demand}}} on one node, and the"
                f" nodes offer {_offers(demand, alive)}. Change the {deployment}'s ray_actor_options in the Serve"
                " configuration, or add a node that offers this (if an autoscaler is adding one, wait for it)."
            )
    return None


def _offers(demand: Demand, nodes: Sequence[Mapping[str, Any]]) -> str:
    offers = []
    for node in nodes[:_SHOWN_NODES]:
        resources = node.get("Resources") or {}
        amounts = [f"{name}: {resources.get(name, 0):g}" for name in demand.resources]
        labels = [f"label {name}={(node.get('Labels') or {}).get(name)}" for name in demand.labels]
        offers.append(f"{{{', '.join(amounts + labels)}}}")  # no addresses: clients see this in /ready
    more = len(nodes) - len(offers)
    return ", ".join(offers) + (f" and {more} more like these" if more > 0 else "")
