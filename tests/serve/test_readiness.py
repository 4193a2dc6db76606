"""Readiness: what /ready reports while the Generator loads, cannot start, is lost and returns."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpt_serve.deployments import readiness
from mpt_serve.deployments.readiness import DeploymentState, ReplicaWatch, Waiting
from mpt_serve.deployments.replica_updates import ReplicaUpdates, RunningReplica
from mpt_serve.deployments.start_report import LoadingStage
from mpt_serve.deployments.version import Version

NODE = {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 4.0}, "Labels": {}}
CPU = {"ray_actor_options": {"num_cpus": 1}, "max_ongoing_requests": 64}
GPU = {"ray_actor_options": {"num_gpus": 1}}
OWN = Version("s", "m")


class Cluster:
    """What the watch sees of Serve and Ray: `state` is what the controller reports next of the Generator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state: DeploymentState | None = None
        self.tokenizer = DeploymentState(1, CPU, "")
        self.loaded: list[dict[str, Any]] = []
        self.capacities: list[int] = []
        self.silent: set[str] = set()
        monkeypatch.setattr(readiness, "deployment_states", self._states)
        monkeypatch.setattr(readiness, "cluster_nodes", lambda: [NODE])
        generator: Any = SimpleNamespace(stats=SimpleNamespace(remote=self._stats))
        self.updates = ReplicaUpdates(("Tokenizer", "Generator"))
        self.watch = ReplicaWatch(
            generator, self.updates, cast(Any, self), OWN, Waiting(60.0, 2), self.loaded.append, self.capacities.append
        )

    def is_silent(self, replica: str) -> bool:
        """Stand in for the signs of life."""
        return replica in self.silent

    def _states(self) -> dict[str, DeploymentState]:
        generator = {} if self.state is None else {"Generator": self.state}
        return {"Tokenizer": self.tokenizer, **generator}

    async def _stats(self) -> dict[str, Any]:
        return {"max_model_len": 64}

    def report(self, version: Version = OWN) -> None:
        """Send the router's updates that come with the states."""
        for name, state in self._states().items():
            self.updates.replicas[name] = [RunningReplica(64, version, f"{name} {i}") for i in range(state.running)]

    def check(self, state: DeploymentState | None) -> tuple[bool, str]:
        """Let the watch check once with this state; return (ready, reason)."""
        self.state = state
        self.report()
        asyncio.run(self.watch.check())
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


def test_how_far_the_furthest_generator_is(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {"a": LoadingStage(2, 0.5), "b": LoadingStage(2, 0.424)}
    monkeypatch.setattr(readiness, "furthest_stage", lambda names: max((stages[n] for n in names), default=None))
    loading = DeploymentState(0, CPU, "", starting=("b",))
    assert cluster.check(loading) == (False, "The model is loading: loading weights, 42%.")
    assert (cluster.watch.readiness.stage, cluster.watch.readiness.progress) == ("loading weights", 0.424)
    cluster.check(DeploymentState(0, CPU, "", starting=("a", "b")))
    assert cluster.watch.readiness.progress == 0.5
    assert cluster.check(DeploymentState(0, CPU, "")) == (False, "The model is loading.")
    assert cluster.watch.readiness.progress is None
    assert cluster.check(loading)[1] == "The model is loading: loading weights, 42%."
    assert cluster.check(DeploymentState(0, GPU, "", starting=("a",)))[1].startswith("No node of the cluster")
    cluster.check(loading)
    assert cluster.check(DeploymentState(1, CPU, "")) == (True, "")
    assert cluster.watch.readiness.progress is None


def test_silent_generators_do_not_count(cluster: Cluster) -> None:
    both = DeploymentState(2, CPU, "")
    assert cluster.check(both) == (True, "")
    cluster.silent = {"Generator 1"}
    assert cluster.check(both) == (True, "")
    cluster.silent = {"Generator 0", "Generator 1"}
    assert cluster.check(both) == (False, "No Generator replies.")
    assert cluster.check(both) == (False, "No Generator replies.")
    cluster.silent = {"Generator 0"}
    assert cluster.check(both) == (True, "")
    assert cluster.capacities == [130, 65, 65]


def test_a_silent_tokenizer_does_not_count(cluster: Cluster) -> None:
    running = DeploymentState(1, CPU, "")
    assert cluster.check(running) == (True, "")
    cluster.silent = {"Tokenizer 0"}
    assert cluster.check(running) == (False, "No Tokenizer replies.")
    cluster.tokenizer = DeploymentState(2, CPU, "")
    assert cluster.check(running) == (True, "")


def test_a_generator_that_stops_while_it_is_asked_delays_the_readiness_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_STATS_WAIT_S", 0.01)
    replies = cluster.watch._generator.stats

    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(cluster.watch, "_generator", SimpleNamespace(stats=SimpleNamespace(remote=never)))
    assert cluster.check(DeploymentState(1, CPU, "")) == (False, "The model is loading.")
    monkeypatch.setattr(cluster.watch, "_generator", SimpleNamespace(stats=replies))
    assert cluster.check(DeploymentState(1, CPU, "")) == (True, "")


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

    async def failing(seen: int, timeout_s: float) -> None:
        nonlocal checks
        checks += 1
        await asyncio.sleep(0)

    def no_controller() -> None:
        raise ConnectionError("no controller")

    async def scenario() -> None:
        task = asyncio.create_task(cluster.watch.run())
        while checks < 3:
            await asyncio.sleep(0.01)
        task.cancel()

    monkeypatch.setattr(readiness, "deployment_states", no_controller)
    monkeypatch.setattr(cluster.updates, "wait", failing)
    asyncio.run(scenario())
    assert cluster.watch.readiness.ready


def test_while_serve_lists_no_deployments_the_last_known_state_stays(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists none while it builds another version, and after a build that failed; the replicas run on."""
    assert cluster.check(DeploymentState(1, CPU, "")) == (True, "")
    monkeypatch.setattr(readiness, "deployment_states", dict)
    asyncio.run(cluster.watch.check())
    assert cluster.watch.readiness.ready
    cluster.updates.replicas["Generator"] = []  # while this is a fact
    asyncio.run(cluster.watch.check())
    assert not cluster.watch.readiness.ready


def test_replicas_of_another_model_serve_no_request(cluster: Cluster) -> None:
    assert cluster.check(DeploymentState(1, CPU, "")) == (True, "")
    assert not cluster.watch.model_was_replaced
    cluster.updates.replicas["Generator"] = [RunningReplica(64, Version("other", "m"))]  # other settings, same model
    asyncio.run(cluster.watch.check())
    assert cluster.watch.readiness.ready
    cluster.updates.replicas["Generator"] = [RunningReplica(64, Version("other", "other"))]
    asyncio.run(cluster.watch.check())
    assert not cluster.watch.readiness.ready
    assert cluster.watch.model_was_replaced


def test_no_request_waits_for_replicas_of_another_model(cluster: Cluster) -> None:
    async def scenario() -> None:
        await cluster.watch.check()
        cluster.updates.replicas["Generator"] = []
        await cluster.watch.check()
        waiting = asyncio.create_task(cluster.watch.wait_ready())
        await asyncio.sleep(0)
        cluster.updates.replicas["Generator"] = [RunningReplica(64, Version("other", "other"))]
        await cluster.watch.check()
        for refused in (await waiting, await cluster.watch.wait_ready()):
            assert (refused.ready, refused.retry_after_s) == (False, 1)
            assert refused.reason == "Another model is being deployed."
        cluster.updates.replicas["Generator"] = [RunningReplica(64, OWN)]
        await cluster.watch.check()
        assert (await cluster.watch.wait_ready()).ready

    assert cluster.check(DeploymentState(1, CPU, "")) == (True, "")
    asyncio.run(scenario())


def test_requests_wait_for_the_next_replica_once_the_server_was_ready(cluster: Cluster) -> None:
    async def scenario() -> list[bool]:
        early = await cluster.watch.wait_ready()  # nothing to wait for: the server may never start
        cluster.state = DeploymentState(1, CPU, "")
        cluster.report()
        await cluster.watch.check()
        cluster.state = DeploymentState(0, CPU, "")
        cluster.report()
        await cluster.watch.check()
        waiting = [asyncio.create_task(cluster.watch.wait_ready()) for _ in range(2)]
        await asyncio.sleep(0)
        too_many = await cluster.watch.wait_ready()
        assert not any(task.done() for task in waiting)
        cluster.state = DeploymentState(1, CPU, "")
        cluster.report()
        await cluster.watch.check()
        return [early.ready, too_many.ready, *[(await task).ready for task in waiting]]

    assert asyncio.run(scenario()) == [False, False, True, True]


def test_requests_wait_for_a_bounded_time(cluster: Cluster) -> None:
    cluster.watch._waiting = Waiting(0.01, 2)
    cluster.check(DeploymentState(1, CPU, ""))
    cluster.check(DeploymentState(0, CPU, ""))
    assert not asyncio.run(cluster.watch.wait_ready()).ready
