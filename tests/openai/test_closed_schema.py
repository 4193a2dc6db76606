"""Objects of tools' arguments have no members that nobody named."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mpt_serve.openai.protocol.closed_schema import closed

A = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED_A = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED_A),
        ({**A, "required": ["a"]}, {**CLOSED_A, "required": ["a"]}),
        (
            {"properties": {"x": A, "y": True}},
            {"properties": {"x": CLOSED_A, "y": True}, "additionalProperties": False},
        ),
        ({"items": A, "prefixItems": [A]}, {"items": CLOSED_A, "prefixItems": [CLOSED_A]}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED_A, {"type": "null"}]}),
        ({"$ref": "#/$defs/b", "$defs": {"b": A}}, {"$ref": "#/$defs/b", "$defs": {"b": CLOSED_A}}),
        ({"properties": {"properties": {}}}, {"properties": {"properties": {}}, "additionalProperties": False}),
        ({"additionalProperties": A}, {"additionalProperties": CLOSED_A}),
        ({"enum": [A]}, {"enum": [A]}),
    ],
)
def test_objects_are_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == expected
    Draft202012Validator.check_schema(closed(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {}},
        {**A, "additionalProperties": True},
        {**A, "patternProperties": {"^x": True}},
        {**A, "minProperties": 2},
        {**A, "required": ["b"]},
        {**A, "required": "a"},
        {"properties": 1},
        {"allOf": [A, {"properties": {"b": True}}]},
        {"properties": {"x": {"allOf": [A]}, "y": A}},
        {**A, "anyOf": [{"properties": {"b": True}}]},
        {**A, "$ref": "#/$defs/b", "$defs": {"b": A}},
        {"required": ["b"], "oneOf": [A]},
    ],
)
def test_others_stay_as_they_are(schema: dict[str, Any]) -> None:
    before = repr(schema)
    assert closed(schema) == schema
    assert repr(schema) == before
