"""Readiness: what /ready reports while the Generator loads, cannot start, is lost and returns."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mpt_serve.deployments import readiness
from mpt_serve.deployments.readiness import DeploymentState, ReplicaWatch

NODE = {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 4.0}, "Labels": {}}
CPU = {"ray_actor_options": {"num_cpus": 1}, "max_ongoing_requests": 64}
GPU = {"ray_actor_options": {"num_gpus": 1}}


class Cluster:
    """What the watch sees of Serve and Ray: `state` is what the controller reports next of the Generator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state: DeploymentState | None = None
        self.tokenizer = DeploymentState(1, CPU, "")
        self.loaded: list[dict[str, Any]] = []
        self.capacities: list[int] = []
        monkeypatch.setattr(readiness, "deployment_states", self._states)
        monkeypatch.setattr(readiness, "cluster_nodes", lambda: [NODE])
        generator: Any = SimpleNamespace(stats=SimpleNamespace(remote=self._stats))
        self.watch = ReplicaWatch(generator, self.loaded.append, self.capacities.append)

    def _states(self) -> dict[str, DeploymentState]:
        generator = {} if self.state is None else {"Generator": self.state}
        return {"Tokenizer": self.tokenizer, **generator}

    async def _stats(self) -> dict[str, Any]:
        return {"max_model_len": 64}

    def check(self, state: DeploymentState | None) -> tuple[bool, str]:
        """Let the watch check once with this state; return (ready, reason)."""
        self.state = state
        asyncio.run(self.watch._check())
        assert self.watch.readiness.code == "loading"
        return self.watch.readiness.ready, self.watch.readiness.reason


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_loading_then_ready_then_gone_then_ready_again(cluster: Cluster) -> None:
    assert cluster.watch.readiness.ready is False
    assert cluster.check(None) == (False, "The model is loading.")
    assert cluster.check(DeploymentState(0, CPU, "")) == (False, "The model is loading.")
    assert cluster.check(DeploymentState(1, CPU, "")) == (True, "")
    assert cluster.check(DeploymentState(1, CPU, "")) == (True, "")
    assert cluster.check(DeploymentState(0, CPU, "")) == (False, "The model is loading.")
    assert cluster.check(DeploymentState(2, CPU, "")) == (True, "")
    assert cluster.loaded == [{"max_model_len": 64}] * 2  # once for each time it became available
    assert cluster.capacities == [65, 65, 130]


def test_no_request_is_served_without_a_tokenizer(cluster: Cluster) -> None:
    running = DeploymentState(1, CPU, "")
    assert cluster.check(running) == (True, "")
    cluster.tokenizer = DeploymentState(0, CPU, "")
    assert cluster.check(running) == (False, "The model is loading.")
    cluster.tokenizer = DeploymentState(0, CPU, "TokenizerError: no tokenizer.json")
    assert cluster.check(running) == (False, "The Tokenizer does not start; the server's log says why.")
    cluster.tokenizer = running
    assert cluster.check(running) == (True, "")


def test_a_replica_that_fits_no_node_is_logged_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(readiness.logger, "error", logged.append)
    for _ in range(3):
        ready, reason = cluster.check(DeploymentState(0, GPU, ""))
        assert not ready
        assert "needs {GPU: 1} on one node" in reason
    assert logged == [reason]


def test_a_constructor_that_raises_is_reported_without_its_traceback(cluster: Cluster) -> None:
    message = "The deployment failed to start 2 times: Traceback\n  File x\nCheckpointError: no config.json in '/x'\n\n"
    assert cluster.check(DeploymentState(0, CPU, message)) == (
        False,
        "The Generator does not start; the server's log says why.",
    )


def test_a_controller_that_fails_for_a_moment_changes_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.check(DeploymentState(1, CPU, "")) == (True, "")
    checks = 0

    def failing() -> None:
        nonlocal checks
        checks += 1
        raise ConnectionError("no controller")

    async def scenario() -> None:
        task = asyncio.create_task(cluster.watch.run())
        while checks < 3:
            await asyncio.sleep(0.01)
        task.cancel()

    monkeypatch.setattr(readiness, "deployment_states", failing)
    monkeypatch.setattr(readiness, "_READY_PERIOD_S", 0.0)
    asyncio.run(scenario())
    assert cluster.watch.readiness.ready
