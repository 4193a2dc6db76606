"""JSON Schemas in words, for error messages and for the reference."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

__all__ = ["ACCEPTS", "Accepts", "Schema", "accepted", "alternatives", "json_type", "subschema"]

Schema = Mapping[str, Any]

ACCEPTS = "x-accepts"


@dataclass(frozen=True)
class Accepts:
    """Annotates a type with the words for what it accepts, where its JSON Schema cannot give them."""

    words: str

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core_schema), ACCEPTS: self.words}


def accepted(schema: Schema, root: Schema) -> str:
    """Return in words what a schema accepts, null left aside. `root` holds the definitions that it refers to."""
    if ACCEPTS in schema:
        return str(schema[ACCEPTS])
    if "$ref" in schema:
        return accepted(_resolved(schema, root), root)
    if "anyOf" in schema:
        first, *others = (option for option in schema["anyOf"] if option.get("type") != "null")
        also = f", or an array of at most {others[0]['maxItems']} of them" if others else ""
        return accepted(first, root) + also
    if "const" in schema or "enum" in schema:
        return " or ".join(f'"{option}"' for option in schema.get("enum", [schema.get("const")]))
    return _WORDS[schema["type"]](schema, root)


def alternatives(schema: Schema, root: Schema) -> Iterator[Schema]:
    """Yield the alternatives of a schema, null left aside, with references resolved."""
    if "$ref" in schema:
        yield from alternatives(_resolved(schema, root), root)
    elif "anyOf" in schema:
        for option in schema["anyOf"]:
            yield from alternatives(option, root)
    elif schema.get("type") != "null":
        yield schema


def subschema(schema: Schema, root: Schema, key: str | int) -> Schema:
    """Return the schema of an object's member or of an array's elements; an empty one if the schema has none."""
    for option in alternatives(schema, root):
        if isinstance(key, int):
            found = option.get("items")
        else:
            found = option.get("properties", {}).get(key)
            for members in option.get("patternProperties", {}).values():  # of an object by id, there is one kind
                found = members
        if found is not None:
            return dict(found)
    return {}


def json_type(value: object) -> str:
    """Return the JSON type of a value, in words: messages name a wrong value by it alone."""
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "another number"
    names = {bool: "a boolean", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Return the definition that a schema refers to."""
    definitions: Mapping[str, Schema] = root["$defs"]
    return definitions[schema["$ref"].removeprefix("#/$defs/")]


def _array(schema: Schema, root: Schema) -> str:
    count = f"{'1 to' if schema.get('minItems') else 'at most'} {schema['maxItems']}"
    return f"an array of {count} items, each {accepted(schema['items'], root)}"


def _integer(schema: Schema, root: Schema) -> str:
    return f"an integer from {_power(schema['minimum'])} to {_power(schema['maximum'])}"


def _power(value: int) -> str:
    """Spell the ends of 31- and 63-bit ranges as powers."""
    names = {2**31 - 1: "2^31 - 1", 2**63 - 1: "2^63 - 1", -(2**63): "-2^63"}
    return names.get(value, str(value))


def _number(schema: Schema, root: Schema) -> str:
    if "exclusiveMinimum" in schema:
        return f"a number above {schema['exclusiveMinimum']:g}, up to {schema['maximum']:g}"
    return f"a number from {schema['minimum']:g} to {schema['maximum']:g}"


def _string(schema: Schema, root: Schema) -> str:
    bound = f" of at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    return f"a{' non-empty' if schema.get('minLength') else ''} string{bound}"


_WORDS: Mapping[str, Callable[[Schema, Schema], str]] = {
    "array": _array,
    "boolean": lambda schema, root: "true or false",
    "integer": _integer,
    "number": _number,
    "object": lambda schema, root: "an object",
    "string": _string,
}
