"""Every file in cluster/, checked offline as its consumer would read it, and more strictly."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from mpt_serve import __version__
from mpt_serve.configuration.problems import closest
from mpt_serve.configuration.serve_schema import check_serve_config

CLUSTER = Path(__file__).parents[2] / "cluster"
RAY_SERVICES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
LAUNCHERS = sorted((CLUSTER / "launcher").glob("*.yaml"))

# The RayService resource (ray.io/v1) by the place of each mapping; pod templates are Kubernetes' own.
CR_KEYS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy", "excludeHeadPodFromServeSvc"},
    "spec.rayClusterConfig": {
        "rayVersion",
        "headGroupSpec",
        "workerGroupSpecs",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headServiceAnnotations",
        "gcsFaultToleranceOptions",
        "suspend",
    },
    "spec.rayClusterConfig.headGroupSpec": {
        "rayStartParams",
        "template",
        "serviceType",
        "headService",
        "enableIngress",
    },
    "spec.rayClusterConfig.workerGroupSpecs[]": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "numOfHosts",
        "rayStartParams",
        "template",
        "scaleStrategy",
        "idleTimeoutSeconds",
    },
}


def name(path: Path) -> str:
    return path.name


def unknown_cr_keys(value: Any, place: str = "") -> list[str]:
    """Return a message for every key of a RayService that the resource does not have."""
    if isinstance(value, list):
        return [message for item in value for message in unknown_cr_keys(item, f"{place}[]")]
    known = CR_KEYS.get(place)
    if known is None or not isinstance(value, dict):
        return []
    own = [f"{place}: unknown '{key}'; {closest(key, known)}" for key in value if key not in known]
    return own + [m for key, item in value.items() for m in unknown_cr_keys(item, f"{place}.{key}".lstrip("."))]


@pytest.mark.parametrize("path", RAY_SERVICES, ids=name)
def test_a_ray_service_has_only_keys_that_exist(path: Path) -> None:
    resource = yaml.safe_load(path.read_text())
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayService")
    assert unknown_cr_keys(resource) == []


def test_the_key_check_finds_typos_at_each_place() -> None:
    good = yaml.safe_load(RAY_SERVICES[0].read_text())
    for place in CR_KEYS:
        resource = copy.deepcopy(good)
        part = resource
        for step in filter(None, place.split(".")):
            part = part[step.removesuffix("[]")]
            part = part[0] if step.endswith("[]") else part
        part["maxReplica"] = 1
        assert len(unknown_cr_keys(resource)) == 1, place


@pytest.mark.parametrize("path", RAY_SERVICES, ids=name)
def test_the_serve_configuration_inside_is_good(path: Path) -> None:
    config = yaml.safe_load(yaml.safe_load(path.read_text())["spec"]["serveConfigV2"])
    assert check_serve_config(config) == []
    ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize("path", RAY_SERVICES, ids=name)
def test_a_worker_pod_holds_a_replica_and_the_groups_can_grow_as_far_as_the_replicas(path: Path) -> None:
    spec = yaml.safe_load(path.read_text())["spec"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert container["resources"]["requests"] == limits
    deployments = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["deployments"]
    (generator,) = (deployment for deployment in deployments if deployment["name"] == "Generator")
    options = generator["ray_actor_options"]
    assert options["num_cpus"] <= float(limits["cpu"])
    assert options.get("num_gpus", 0) <= float(limits.get("nvidia.com/gpu", 0))
    assert generator["autoscaling_config"]["max_replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("path", RAY_SERVICES, ids=name)
def test_rays_autoscaler_understands_the_groups(path: Path) -> None:
    resource = yaml.safe_load(path.read_text())
    cluster = {"metadata": {"name": "c", "namespace": "default"}, "spec": resource["spec"]["rayClusterConfig"]}
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    (worker,) = (kind for group, kind in config["available_node_types"].items() if group != config["head_node_type"])
    assert worker["max_workers"] == 4
    assert ("GPU" in worker["resources"]) == ("gpu" in path.name)


@pytest.mark.parametrize("path", LAUNCHERS, ids=name)
def test_ray_up_takes_a_launcher_file(path: Path) -> None:
    validate_config(prepare_config(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("path", LAUNCHERS, ids=name)
def test_ray_up_would_refuse_a_typo(path: Path) -> None:
    config = yaml.safe_load(path.read_text()) | {"max_worker": 1}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(config))


def test_images_have_the_version_of_the_package() -> None:
    files = [file for file in CLUSTER.rglob("*") if file.is_file()]
    tags = {tag for file in files for tag in re.findall(r"mpt-serve:(\d[\w.]*)", file.read_text())}
    assert tags == {__version__}
