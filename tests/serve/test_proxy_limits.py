"""What Serve's proxy gets of the applications' limits."""

import pytest
from server import serve_config

from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.configuration.proxy_limits import PROXY_LIMITS_VARIABLE, KeySource, ProxyLimits


def test_the_limits_suit_all_applications_of_a_file() -> None:
    small = serve_config({"limits": {"max_body_bytes": "1MiB", "max_waiting_requests": 10}}, 8000)
    large = serve_config(
        {"limits": {"max_body_bytes": "9MiB", "body_timeout_s": 5}}, 8000, [{"name": "Ingress", "num_replicas": 3}]
    )
    other = {"name": "other", "import_path": "other:app"}
    config = {**small, "applications": [*small["applications"], *large["applications"], other]}
    limits = ProxyLimits.of(config)
    assert limits.bodies.max_body_bytes == 9 * 1024**2
    assert limits.bodies.body_timeout_s == Limits().body_timeout_s
    assert limits.max_running == 10 + 3 * Limits().max_waiting_requests


@pytest.mark.parametrize(
    ("ingress", "replicas"),
    [
        ({}, 1),
        ({"num_replicas": 2}, 2),
        ({"num_replicas": "auto"}, 1),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 4}}, 4),
    ],
)
def test_every_replica_of_the_ingress_counts(ingress: dict[str, object], replicas: int) -> None:
    config = serve_config({"limits": {"max_waiting_requests": 7}}, 8000, [{"name": "Ingress", **ingress}])
    assert ProxyLimits.of(config).max_running == 7 * replicas


def test_keys_of_all_applications_are_known_or_none() -> None:
    """A request without a key may be for the application that requires none."""
    first = serve_config({"access": {"key_file": "/keys"}}, 8000)
    second = serve_config({"access": {"key_variable": "KEYS"}}, 8000)
    both = {**first, "applications": [*first["applications"], *second["applications"]]}
    assert ProxyLimits.of(both).keys == (KeySource(file="/keys"), KeySource(variable="KEYS"))
    for other in (serve_config({}, 8000)["applications"][0], {"name": "other", "import_path": "other:app"}):
        assert ProxyLimits.of({**first, "applications": [*first["applications"], other]}).keys == ()


def test_the_environment_carries_them(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ProxyLimits.of(serve_config({"limits": {"max_body_bytes": "1MiB"}, "access": {"key_file": "/keys"}}, 8000))
    ((name, value),) = limits.variable().items()
    monkeypatch.setenv(name, value)
    assert ProxyLimits.from_environment() == limits
    monkeypatch.setenv(PROXY_LIMITS_VARIABLE, '{"bodies": {"max_body_bytes": 0}}')
    with pytest.raises((ValueError, ConfigurationError)):
        ProxyLimits.from_environment()


def test_without_the_variable_bodies_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROXY_LIMITS_VARIABLE, raising=False)
    limits = ProxyLimits.from_environment()
    assert limits.bodies.max_body_bytes == limits.bodies.max_unread_body_bytes
    assert limits.max_running is None
    config = {"applications": [{"name": "other", "import_path": "other:app"}]}
    assert ProxyLimits.of(config) == limits
