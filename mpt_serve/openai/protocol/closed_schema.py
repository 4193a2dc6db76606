"""Schemas of objects that have no members beside those that they name."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["closed"]

_MAPS = {"properties", "patternProperties", "$defs", "definitions"}  # of schemas by name
_PARTS = _MAPS | {"items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf"}
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"}
_COMBINED = {"anyOf", "oneOf", "$ref"}
_OF_OBJECTS = _OPEN | {"properties", "required", "maxProperties"}


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema under which objects have no members beside their `properties`, unless it speaks of others.

    What is valid under it is valid under the original. A weak model would go on inventing members where it may. Where
    several parts of a schema apply to the same object, closing one would exclude the members of another: the schema is
    returned as it is.
    """
    return schema if any(map(_is_combined, _nodes(schema))) else _closed(schema)


def _is_combined(node: Mapping[str, Any]) -> bool:
    return "allOf" in node or not (_COMBINED.isdisjoint(node) or _OF_OBJECTS.isdisjoint(node))


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(part) for part in node]
    if not isinstance(node, Mapping):
        return node
    copy = dict(node)
    for key in _PARTS & node.keys():
        value = node[key]
        by_name = key in _MAPS and isinstance(value, Mapping)
        copy[key] = {name: _closed(part) for name, part in value.items()} if by_name else _closed(value)
    properties, required = node.get("properties"), node.get("required", [])
    named = (
        isinstance(properties, Mapping) and isinstance(required, list) and all(name in properties for name in required)
    )
    if named and properties and _OPEN.isdisjoint(node):
        copy["additionalProperties"] = False
    return copy


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a schema and those in it."""
    if isinstance(node, list):
        for part in node:
            yield from _nodes(part)
    elif isinstance(node, Mapping):
        yield node
        for key in _PARTS & node.keys():
            value = node[key]
            by_name = key in _MAPS and isinstance(value, Mapping)
            yield from _nodes(list(value.values()) if by_name else value)
