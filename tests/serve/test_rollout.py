"""How the Generator's replicas are replaced, and why a start has failed."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import ApplicationStatus, DeploymentStatus

from mpt_serve import serve_run
from mpt_serve.resources import ClusterNode, surge_percent
from mpt_serve.serve_run import failure_of


def node(total: dict[str, float], **available: float) -> ClusterNode:
    return ClusterNode(total, {**total, **available}, {})


ONE_GPU = {"ray_actor_options": {"num_gpus": 1}}


@pytest.mark.parametrize(
    ("options", "nodes", "running", "percent"),
    [
        ({}, [node({"CPU": 2})], 0, 100),
        ({}, [node({"CPU": 2}, CPU=1)], 1, 100),
        ({}, [node({"CPU": 1}, CPU=0)], 1, 0),  # two do not fit at once
        ({}, [node({"CPU": 1})], 0, 0),
        (ONE_GPU, [node({"CPU": 8, "GPU": 1}, GPU=0)], 1, 0),
        (ONE_GPU, [node({"CPU": 8, "GPU": 2}, GPU=1)], 1, 100),
        (ONE_GPU, [node({"CPU": 8, "GPU": 1}, GPU=0), node({"CPU": 8, "GPU": 1})], 1, 100),
        (ONE_GPU, [node({"CPU": 8})], 1, 100),  # no node has one: what runs must stay
        ({"num_replicas": 2}, [node({"CPU": 2})], 0, 0),
        ({"num_replicas": 2}, [node({"CPU": 3})], 0, 100),
        ({"autoscaling_config": {"min_replicas": 2}}, [node({"CPU": 2})], 0, 0),
    ],
)
def test_the_old_one_stops_first_only_where_two_do_not_fit(
    options: dict[str, Any], nodes: list[ClusterNode], running: int, percent: int
) -> None:
    assert surge_percent(options, nodes, running, (0, 0)) == percent


@pytest.mark.parametrize(
    ("running", "free", "percent"), [(1, 9, 0), (1, 10, 100), (0, 19, 0), (0, 20, 100), (0, 0, 100)]
)
def test_two_need_the_memory_of_two(running: int, free: int, percent: int) -> None:
    assert surge_percent({}, [node({"CPU": 8})], running, (10, free)) == percent


def status(status: ApplicationStatus, message: str = "", **deployments: str) -> Any:
    states = {
        name: SimpleNamespace(status=DeploymentStatus.DEPLOY_FAILED if text else DeploymentStatus.HEALTHY, message=text)
        for name, text in deployments.items()
    }
    return SimpleNamespace(status=status, message=message, deployments=states)


TRACEBACK = """The deployment failed to start 3 times in a row. This may be due to its constructor. Error:
Traceback (most recent call last):
  File "replica.py", line 9, in __init__
ValueError: an inner error

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
model.checkpoint.stored_tensor.CheckpointError: /m: the tensors do not fit the config
"""


@pytest.mark.parametrize(
    ("application", "failure"),
    [
        (status(ApplicationStatus.DEPLOYING), None),
        (status(ApplicationStatus.RUNNING), None),
        (
            status(
                ApplicationStatus.DEPLOY_FAILED, "Failed to update the deployments.", Ingress="", Generator=TRACEBACK
            ),
            "the application 'mpt' cannot start: Generator: /m: the tensors do not fit the config",
        ),
        (
            status(ApplicationStatus.DEPLOY_FAILED, "Deploying app 'mpt' failed with exception:\nmodel: no folder\n"),
            "the application 'mpt' cannot start: model: no folder",
        ),
    ],
)
def test_a_failed_start_is_reported_without_tracebacks(application: Any, failure: str | None) -> None:
    assert failure_of("mpt", application) == failure


class Signalled(BaseException):
    pass


def test_only_the_start_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all applications have started, the controller is not asked any more, and later failures end nothing."""
    starting, running = status(ApplicationStatus.DEPLOYING), status(ApplicationStatus.RUNNING)
    failed = status(ApplicationStatus.DEPLOY_FAILED, "Deploying app 'b' failed with exception:\nmodel: no folder\n")
    states = iter([{}, {"a": starting, "b": starting}, {"a": running, "b": starting}, {"a": failed, "b": running}])

    def wait() -> None:
        raise Signalled

    monkeypatch.setattr(serve_run, "_applications", lambda: next(states))
    monkeypatch.setattr(serve_run, "_wait_for_signal", wait)
    monkeypatch.setattr(serve_run, "_POLL_S", 0)
    with pytest.raises(Signalled):
        serve_run._first_failure()
    assert not list(states)

    states = iter([{"a": running, "b": starting}, {"a": running, "b": failed}])
    assert serve_run._first_failure() == "the application 'b' cannot start: model: no folder"
