"""When a replica of a new version takes over from those of the last one."""

import asyncio

import pytest

from mpt_serve.deployments import takeover
from mpt_serve.deployments.readiness import DeploymentState
from mpt_serve.deployments.replica_updates import ReplicaUpdates, RunningReplica
from mpt_serve.deployments.takeover import Takeover
from mpt_serve.deployments.version import Version

NEW, OLD = RunningReplica(8, Version("new", "m")), RunningReplica(8, Version("old", "m"))
UNNAMED = RunningReplica(8, None)


class Serve(ReplicaUpdates):
    """What an Ingress of the new version sees; each wait takes the next of `updates`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **replicas: list[RunningReplica]) -> None:
        super().__init__(("Ingress", "Tokenizer", "Generator"))
        self.replicas.update(replicas)
        self.updates: list[tuple[str, list[RunningReplica]]] = []
        self.states = {name: DeploymentState(len(running), {}, "") for name, running in replicas.items()}
        monkeypatch.setattr(takeover, "deployment_states", lambda: self.states)
        self.takeover = Takeover("Ingress", ["Tokenizer", "Generator"], Version("new", "m"), self)

    async def wait(self, seen: int, timeout_s: float) -> None:
        name, running = self.updates.pop(0)
        self.replicas[name] = running
        self.count += 1


def test_the_first_start_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Serve(monkeypatch)
    serve.states = {name: DeploymentState(0, {}, "") for name in ("Ingress", "Tokenizer", "Generator")}
    asyncio.run(serve.takeover.wait())
    assert not serve.takeover.replaces


def test_a_second_replica_of_a_version_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Serve(monkeypatch, Ingress=[NEW], Tokenizer=[NEW], Generator=[])
    asyncio.run(serve.takeover.wait())
    assert not serve.takeover.replaces


@pytest.mark.parametrize("old", [OLD, UNNAMED])
def test_a_new_version_takes_over_when_all_of_it_runs(monkeypatch: pytest.MonkeyPatch, old: RunningReplica) -> None:
    serve = Serve(monkeypatch, Ingress=[old], Tokenizer=[old], Generator=[old])
    serve.updates = [
        ("Generator", [old]),  # another replica fails to start
        ("Generator", []),  # two do not fit at once: the old one has left first
        ("Generator", [NEW]),
        ("Tokenizer", [old, NEW]),
    ]
    asyncio.run(serve.takeover.wait())
    assert serve.updates == []
    assert serve.takeover.replaces


def test_without_anything_to_take_over_from_it_serves_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last Ingress of the old version is lost after a deploy whose Generator does not start."""
    serve = Serve(monkeypatch, Ingress=[OLD], Tokenizer=[OLD], Generator=[OLD])
    serve.updates = [("Ingress", [])]
    asyncio.run(serve.takeover.wait())
    assert serve.takeover.replaces


def test_it_decides_when_all_running_deployments_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Serve(monkeypatch, Ingress=[OLD], Tokenizer=[OLD], Generator=[OLD])
    serve.replicas.clear()
    serve.updates = [("Generator", [NEW]), ("Ingress", [OLD]), ("Tokenizer", [NEW])]
    asyncio.run(serve.takeover.wait())
    assert serve.updates == []
