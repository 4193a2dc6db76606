"""Fields of a request from the command line."""

import json
from collections.abc import Sequence
from typing import Any

from mpt_serve.commands.failure import CommandError

__all__ = ["parse_fields"]


def parse_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Return fields from NAME=JSON; what is no JSON is a text. Raises CommandError."""
    parsed = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise CommandError("--set must have the form NAME=VALUE, such as top_k=20", status=2)
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed
