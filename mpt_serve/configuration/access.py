"""Settings of who may send requests."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from mpt_serve.configuration.setting_types import Count, SettingsGroup

__all__ = ["AbsolutePath", "AccessSettings"]

_ORIGIN = re.compile(r"https?://[^/\s?#@]+", re.ASCII)


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [origin for origin in origins if origin != "*" and not _ORIGIN.fullmatch(origin)]
    if wrong:
        raise ValueError(f"must hold origins such as 'https://chat.example.com', or '*'; got {wrong[0]!r:.100}")
    return origins


def _check_absolute(path: str | None) -> str | None:
    if path is not None and not Path(path).expanduser().is_absolute():
        raise ValueError(f"must be an absolute path, as replicas have other working directories; got {path!r:.100}")
    return path


AbsolutePath = Annotated[str | None, AfterValidator(_check_absolute)]


class AccessSettings(SettingsGroup):
    """Who may send requests, and how many (`SECURITY.md`). Each Ingress replica counts for itself."""

    key_file: AbsolutePath = Field(
        default=None,
        description="A file with the lines of API keys that `mpt-serve keys` prints; it must exist on every node that"
        " runs an Ingress, and should exist where Serve's proxies run. It is read again within seconds after it has"
        " changed. Set: all endpoints except `/health`, `/ready` and the page at `/` require a key.",
    )
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="An environment variable of the Ingress' node with such lines, separated by line breaks or `;`."
        " Together with `key_file` or instead of it.",
    )
    requests_per_minute: Count | None = Field(
        default=None,
        description="Requests of one name per minute, unless the lines of its keys say otherwise; more are refused with"
        " 429 and a Retry-After header. Unset: no limit.",
    )
    tokens_per_minute: Count | None = Field(
        default=None,
        description="Tokens of one name per minute, those of prompts and generated ones, unless the lines of its keys"
        " say otherwise. A request is admitted while not all are used; what it uses beyond is subtracted from the next"
        " minutes. Unset: no limit.",
    )
    max_share: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="The part of `limits.max_waiting_requests` and `limits.max_waiting_prompt_tokens` that the requests"
        " of one name may take; more are refused with 429. A request that is alone is always admitted.",
    )
    cors_origins: Annotated[tuple[str, ...], AfterValidator(_check_origins)] = Field(
        default=(),
        description="Origins whose pages may call the API from browsers, such as `https://chat.example.com`; `'*'` for"
        " all. Empty: none.",
    )
    audit_log_dir: AbsolutePath = Field(
        default=None,
        description="A folder on the Ingress' node for its audit log: one line for each request, with the name and id"
        " of its key, endpoint, status and numbers of tokens, never its text. `mpt-serve audit FILE` checks that no"
        " line was changed later. Requests that are refused because the server is at capacity are left out.",
    )

    @property
    def requires_keys(self) -> bool:
        """Return whether requests need an API key."""
        return self.key_file is not None or self.key_variable is not None
