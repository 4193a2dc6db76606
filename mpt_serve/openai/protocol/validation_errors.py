"""The one way from pydantic's errors to those of the wire contract."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from mpt_serve.openai.errors import InvalidValueError, UnsupportedParameterError
from mpt_serve.openai.protocol.schema_words import Schema, accepted, alternatives, json_type, subschema

__all__ = ["invalid", "invalid_value_error", "unsupported"]

_SHOWN_NAME = re.compile(r"[\w.+-]{1,32}", re.ASCII)
_KEY = "[key]"  # pydantic's mark of an error in the name of a member, after the name


def invalid(predicate: str, field: str = "") -> PydanticCustomError:
    """Return an error for a validator to raise: "'<path>' <predicate>.", of the validated value or of its `field`."""
    return PydanticCustomError("invalid_value", "{predicate}", {"predicate": predicate, "field": field})


def unsupported(predicate: str, field: str = "") -> PydanticCustomError:
    """Return the error of `invalid` for what is not offered."""
    return PydanticCustomError("unsupported_parameter", "{predicate}", {"predicate": predicate, "field": field})


def invalid_value_error(
    error: ValidationError, schema: Schema, order: Sequence[str], body: Mapping[str, Any]
) -> InvalidValueError:
    """Return the error of the first wrong field, with the field's path as `param`.

    schema: the request's JSON Schema, from which the message says what the field accepts. order: of the fields.
    """
    places = {name: place for place, name in enumerate(order)}
    errors = error.errors(include_url=False, include_input=False)
    first = min(errors, key=lambda details: places.get(str(details["loc"][0]), -1) if details["loc"] else -1)
    path, value, found = _follow(first["loc"], schema, body)
    context = first.get("ctx", {})
    if "predicate" in context:
        path = _joined(path, context["field"])
        kind = UnsupportedParameterError if first["type"] == "unsupported_parameter" else InvalidValueError
        return kind(f"'{path}' {context['predicate']}.", param=path)
    if first["type"] == "missing":
        return InvalidValueError(f"'{path}' is required: {accepted(found, schema)}.", param=path)
    return InvalidValueError(f"'{path}' {_mistake(first, value, found, schema)}.", param=path)


def _follow(steps: tuple[str | int, ...], schema: Schema, body: Mapping[str, Any]) -> tuple[str, Any, Schema]:
    """Return the path, the value and the schema at the end of the steps, as far as the body goes.

    A single value that was taken as an array of one has no step in the path; nor has a member with a wrong
    name, which is the mistake of its object.
    """
    path, root = "", schema
    value: Any = body
    for step in steps[:-2] if steps[-1:] == (_KEY,) else steps:
        if isinstance(step, int) and isinstance(value, list):
            path, value = f"{path}[{step}]", value[step]
        elif isinstance(step, str) and isinstance(value, dict):
            path, value = _joined(path, step), value.get(step)
        else:
            break
        schema = subschema(schema, root, step)
    return path, value, schema


def _joined(path: str, field: str) -> str:
    return path + field if not path or not field or field.startswith("[") else f"{path}.{field}"


def _mistake(details: ErrorDetails, value: Any, schema: Schema, root: Schema) -> str:
    """Return what the value must be and what came instead, never the value itself."""
    came = json_type(value)
    for option in alternatives(schema, root):
        if isinstance(value, str) and not option.keys().isdisjoint(("enum", "const", "pattern")):
            came = "another string"
        elif isinstance(value, str) and option["type"] == "string":
            if option.get("minLength", 0) <= len(value) <= option.get("maxLength", len(value)):
                return "contains half of a surrogate pair, which is not text"
            came = f"{len(value)} characters"
        elif isinstance(value, list) and option["type"] == "array":
            came = f"{len(value)} items"
        elif isinstance(value, dict) and details["loc"][-1:] == (_KEY,):
            came = f"a member whose name is not a token id: {_name(str(details['loc'][-2]))}"
    return f"must be {accepted(schema, root)}; got {came}"


def _name(text: str) -> str:
    """Return a member's name as messages show it: those of clients may be long, or anything."""
    return f'"{text}"' if _SHOWN_NAME.fullmatch(text) else f"one of {len(text)} characters"
