"""Files that are complete whenever a process or a machine ends: they are on disk before they have their names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoint.atomic_write import atomic_write

__all__ = ["read_json", "write_bytes", "write_json"]


def write_bytes(path: Path, content: bytes) -> None:
    """Write or replace a file. When this returns, it is on disk. Raises OSError, which leaves what was there."""
    with atomic_write(path, mode=0o600, on_disk=True) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write or replace a file with a JSON object; see `write_bytes`."""
    write_bytes(path, json.dumps(content).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file that `write_json` wrote, None if there is no file. Raises OSError."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content
