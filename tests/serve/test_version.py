"""Which replicas can serve each other's requests."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter

from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments.same_model_router import SameModelRouter
from mpt_serve.deployments.version import Version


def test_settings_make_the_version() -> None:
    version = Version.of(Settings())
    assert Version.of(Settings()) == version
    assert Version.from_metadata(version.metadata()) == version
    assert Version.from_metadata({}) is None
    changed = Version.of(Settings(max_model_len=64))
    assert changed != version
    assert changed.model == version.model
    assert Version.of(Settings(model="a/b")).model != version.model


def test_requests_go_to_replicas_of_the_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    routed: list[Any] = []
    monkeypatch.setattr(
        PowerOfTwoChoicesRequestRouter, "_update_running_replicas", lambda _, infos: routed.extend(infos)
    )
    router = object.__new__(SameModelRouter)
    metadata = [Version("s", "a").metadata(), Version("s", "b").metadata(), {}]
    own, other, older = (SimpleNamespace(replica_metadata=each) for each in metadata)
    router._update_running_replicas([own, other, older])
    assert routed == [own, other, older]
    routed.clear()
    monkeypatch.setattr(SameModelRouter, "model", "a")
    router._update_running_replicas([own, other, older])
    assert routed == [own, older]
