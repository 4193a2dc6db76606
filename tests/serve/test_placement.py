"""Placement: what a replica needs, and the message when no node has it."""

import pytest

from mpt_serve.deployments.placement import Demand, replica_demands, unmet_demand

CPU_NODE = {
    "Alive": True,
    "NodeManagerAddress": "10.0.0.1",
    "Resources": {"CPU": 8.0, "memory": 2e9},
    "Labels": {"zone": "a"},
}
GPU_NODE = {"Alive": True, "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 8.0, "GPU": 2.0}, "Labels": {}}


@pytest.mark.parametrize(
    ("config", "demands"),
    [
        ({"ray_actor_options": {"num_cpus": 1, "num_gpus": 0}}, [Demand({"CPU": 1})]),
        ({"ray_actor_options": {"num_cpus": 0, "resources": {"TPU": 4}}}, [Demand({"TPU": 4})]),
        (
            {"ray_actor_options": {"num_gpus": 1, "accelerator_type": "L4"}},
            [Demand({"GPU": 1, "accelerator_type:L4": 0.001})],
        ),
        ({"ray_actor_options": {"num_cpus": 1, "label_selector": {"zone": "a"}}}, [Demand({"CPU": 1}, {"zone": "a"})]),
        ({"placement_group_bundles": [{"CPU": 1, "GPU": 0}, {"GPU": 2}]}, [Demand({"CPU": 1}), Demand({"GPU": 2})]),
        (
            {"placement_group_bundles": [{"GPU": 1}, {"GPU": 1}], "placement_group_strategy": "STRICT_PACK"},
            [Demand({"GPU": 2})],
        ),
        ({}, [Demand({})]),
    ],
)
def test_what_a_replica_needs(config: dict, demands: list[Demand]) -> None:
    assert replica_demands(config) == demands


@pytest.mark.parametrize(
    "demand", [Demand({"CPU": 8}), Demand({"GPU": 1}), Demand({}, {"zone": "a"}), Demand({"CPU": 1}, {"zone": "!b"})]
)
def test_a_node_that_has_it_is_enough(demand: Demand) -> None:
    assert unmet_demand("Generator", [demand], [CPU_NODE, GPU_NODE]) is None


@pytest.mark.parametrize(
    "demand", [Demand({"GPU": 3}), Demand({"GPU": 1, "memory": 1e9}), Demand({"CPU": 1}, {"zone": "b"})]
)
def test_a_demand_must_be_met_by_one_node(demand: Demand) -> None:
    assert unmet_demand("Generator", [demand], [CPU_NODE, GPU_NODE]) is not None


def test_the_message_names_resource_amount_nodes_and_remedy() -> None:
    message = unmet_demand("Generator", [Demand({"TPU": 4})], [CPU_NODE, {**GPU_NODE, "Alive": False}])
    assert message is not None
    assert "needs {TPU: 4}" in message
    assert "nodes offer {TPU: 0}." in message
    assert "ray_actor_options" in message
    assert "10.0.0" not in message
