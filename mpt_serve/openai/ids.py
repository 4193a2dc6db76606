"""Ids of requests and responses."""

import re
import secrets

__all__ = ["new_id", "request_id_from"]

_ACCEPTED = re.compile(r"[\w.-]{1,128}", re.ASCII)


def new_id(prefix: str) -> str:
    """Return a new id such as `cmpl-3f...`, with 128 random bits so that it cannot be guessed."""
    return f"{prefix}-{secrets.token_hex(16)}"


def request_id_from(header: str | None) -> str:
    """Return the request's own id if it is harmless in logs, or else a new one."""
    return header if header is not None and _ACCEPTED.fullmatch(header) else new_id("req")
