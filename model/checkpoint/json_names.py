"""JSON objects whose members must have different names: of two alike, readers take one or the other."""

from collections import Counter
from collections.abc import Sequence
from typing import Any


class RepeatedNameError(ValueError):
    """An object has several members of one `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"an object has several members {name[:200]!r}")
        self.name = name


def unique_members(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, as `object_pairs_hook` of `json.loads`. Raises RepeatedNameError."""
    value = dict(members)
    if len(value) < len(members):
        raise RepeatedNameError(next(name for name, times in Counter(n for n, _ in members).items() if times > 1))
    return value
