"""What Serve's HTTP proxy must know of the applications' limits: it reads bodies before any application sees them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ByteSize, Field

from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.serve_schema import own_applications
from mpt_serve.configuration.setting_types import Count, SettingsGroup

__all__ = ["PROXY_LIMITS_VARIABLE", "KeySource", "ProxyLimits"]

PROXY_LIMITS_VARIABLE = "MPT_SERVE_PROXY_LIMITS"


class KeySource(SettingsGroup):
    """Where one application has its API keys; see `AccessSettings`."""

    file: str | None = None
    variable: str | None = None


class ProxyLimits(SettingsGroup):
    """The limits of one proxy, for all applications behind it.

    bodies: bounds of the bodies that arrive. max_running: requests to generate that are passed on as long as no Ingress
    has refused any; None for no bound. keys: of all applications; empty if one of them requires none.
    """

    bodies: Limits = Field(default_factory=lambda: Limits(max_body_bytes=ByteSize(64 * 1024**2)))
    max_running: Count | None = None
    keys: tuple[KeySource, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ProxyLimits":
        """Return what suits all applications of mpt_serve in a Serve configuration without mistakes."""
        own = [(application, settings) for _, application, settings in own_applications(config)]
        if not own:
            return cls()
        limits = [settings.limits for _, settings in own]
        bodies = Limits(
            max_body_bytes=max(each.max_body_bytes for each in limits),
            body_timeout_s=max(each.body_timeout_s for each in limits),
            max_unread_bodies=max(each.max_unread_bodies for each in limits),
            max_unread_body_bytes=max(each.max_unread_body_bytes for each in limits),
            max_headers=max(each.max_headers for each in limits),
            max_header_bytes=max(each.max_header_bytes for each in limits),
        )
        running = [each.limits.max_waiting_requests * _ingress_replicas(application) for application, each in own]
        access = [settings.access for _, settings in own]
        keys = [KeySource(file=each.key_file, variable=each.key_variable) for each in access if each.requires_keys]
        if len(keys) < len(config["applications"]):
            keys = []
        return cls(bodies=bodies, max_running=sum(running), keys=tuple(keys))

    @classmethod
    def from_environment(cls) -> "ProxyLimits":
        """Return the limits in the environment. Raises ValueError for a variable that does not hold any."""
        text = os.environ.get(PROXY_LIMITS_VARIABLE)
        return cls.model_validate_json(text) if text else cls()

    def variable(self) -> dict[str, str]:
        """Return the environment variable that `from_environment` reads."""
        return {PROXY_LIMITS_VARIABLE: self.model_dump_json(exclude_unset=True)}


def _ingress_replicas(application: Mapping[str, Any]) -> int:
    """Return how many replicas of the Ingress there may be."""
    deployments: Sequence[Mapping[str, Any]] = application.get("deployments") or ()
    own = next((each for each in deployments if each["name"] == "Ingress"), {})
    scaling = own.get("autoscaling_config") or {}
    replicas = own.get("num_replicas")
    fixed = replicas if isinstance(replicas, int) else 1
    return max(fixed, int(scaling.get("max_replicas") or 1))
