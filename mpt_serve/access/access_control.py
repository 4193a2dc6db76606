"""Keys and limits together, as settings state them."""

from dataclasses import dataclass
from pathlib import Path

from mpt_serve.access.api_key import KeyLineError
from mpt_serve.access.client import ClientLimits, Clients
from mpt_serve.access.key_store import KeyStore
from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.problems import ConfigurationError, Problem

__all__ = ["AccessControl"]


@dataclass(frozen=True)
class AccessControl:
    """The keys that are required, and the clients that have them."""

    keys: KeyStore
    clients: Clients

    @classmethod
    def of(cls, access: AccessSettings, limits: Limits) -> "AccessControl | None":
        """Return what the settings require; None if requests need no key. Raises ConfigurationError."""
        if not access.requires_keys:
            return None
        file = None if access.key_file is None else Path(access.key_file).expanduser()
        try:
            keys = KeyStore(file, access.key_variable)
        except KeyLineError as error:
            raise ConfigurationError([Problem((), str(error))]) from error
        except (OSError, UnicodeDecodeError) as error:
            message = f"cannot be read ({type(error).__name__}); it must be a UTF-8 file on every node of an Ingress"
            raise ConfigurationError([Problem(("access", "key_file"), message)]) from error
        most = ClientLimits(
            access.requests_per_minute,
            access.tokens_per_minute,
            max(1, int(limits.max_waiting_requests * access.max_share)),
            max(1, int(limits.max_waiting_prompt_tokens * access.max_share)),
        )
        return cls(keys, Clients(most))
