"""What distinguishes the replicas of one deployed configuration from those of the next."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from mpt_serve.configuration.settings import Settings

__all__ = ["Version"]


@dataclass(frozen=True)
class Version:
    """The configuration that a replica was started with.

    settings: a digest of all settings. model: the model; ids mean the same to all replicas of one model, so these can
        serve each other's requests.
    """

    settings: str
    model: str

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the version of a replica with these settings."""
        return cls(hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16], settings.model)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Return the version that a replica has reported, None if it has reported none."""
        settings, model = metadata.get("settings"), metadata.get("model")
        return cls(settings, model) if isinstance(settings, str) and isinstance(model, str) else None

    def metadata(self) -> dict[str, str]:
        """Return what a replica reports to Serve, which passes it on to callers (`record_replica_metadata`)."""
        return asdict(self)
