"""What a Generator reports of its start, which Ingress replicas read."""

import logging
from collections.abc import Iterator

import pytest
from ray.experimental import internal_kv

from mpt_serve.deployments.start_report import LoadingStage, furthest_stage, reported_start

Store = dict[str, str]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Stand in for Ray's key-value store."""
    kept: Store = {}
    monkeypatch.setattr(internal_kv, "_internal_kv_initialized", lambda: True)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", lambda key, value, namespace: kept.update({key: value}))
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: kept.get(key))
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key, namespace: kept.pop(key))
    return kept


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """The loggers of what loads, at the level that replicas have."""
    found = [logging.getLogger(name) for name in ("mpt_serve.engine.programs", "model.checkpoint.load")]
    levels = [own.level for own in found]
    for own in found:
        own.setLevel(logging.INFO)
    yield found
    for own, level in zip(found, levels, strict=True):
        own.setLevel(level)


def test_the_stages_of_a_start(store: Store, loggers: list[logging.Logger]) -> None:
    programs, weights = loggers
    handlers = [list(logging.getLogger(name).handlers) for name in ("mpt_serve", "model")]
    with reported_start("a"):
        assert (furthest_stage(["a"]), furthest_stage(["b"]), furthest_stage([])) == (LoadingStage(0, 0.0), None, None)
        weights.info("weights: %d of %d MiB read", 1, 4)
        assert furthest_stage(["a", "b"]) == LoadingStage(2, 0.25)
        weights.info("anything else")
        weights.info("weights: %d MiB", 4)
        with reported_start("b"):
            assert furthest_stage(["a", "b"]) == LoadingStage(2, 1.0)
        programs.info("programs: %d of %d compiled", 0, 20)
        stage = furthest_stage(["a"])
        assert stage == LoadingStage(3, 0.0)
        assert stage.name == "compiling programs"
    assert store == {}
    assert [list(logging.getLogger(name).handlers) for name in ("mpt_serve", "model")] == handlers


def test_a_start_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="broken"), reported_start("a"):
        raise ValueError("broken")
    assert store == {}


def test_outside_ray_nothing_is_reported(monkeypatch: pytest.MonkeyPatch, loggers: list[logging.Logger]) -> None:
    monkeypatch.setattr(internal_kv, "_internal_kv_initialized", lambda: False)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", None)
    with reported_start("a"):
        loggers[0].info("programs: %d of %d compiled", 1, 2)
