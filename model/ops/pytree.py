"""Frozen records whose arrays JAX sees: `dataclass` is `flax.struct.dataclass`, with types."""

from typing import TYPE_CHECKING, TypeVar

import flax.struct

if TYPE_CHECKING:
    from dataclasses import dataclass  # flax carries no types; to a type checker both decorators do the same
else:
    from flax.struct import dataclass

__all__ = ["dataclass", "static"]

Value = TypeVar("Value")


def static(default: Value) -> Value:
    """Return a field of a record that is part of the tree's structure: hashable, and no array."""
    field: Value = flax.struct.field(pytree_node=False, default=default)
    return field
