"""Outputs of random ids are always valid, whatever the model generates."""

import json
import re
from typing import Any

import pytest
from following import random_output
from jsonschema import Draft202012Validator

from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarKind, GrammarSpec
from mpt_serve.text.tokenizer import TextTokenizer

SEEDS = range(6)

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, Any] = {
    "anything": True,
    "record": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "mail": {"type": "string", "pattern": r"^[a-z]+@[a-z]+\.(org|com)$"},
            "tags": {"type": "array", "items": {"enum": ["red", "grün", "青", 1, None, {"a": [1]}]}, "maxItems": 4},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "open record": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    },
    "patterns": {
        "type": "object",
        "patternProperties": {"^x-": {"type": "integer"}, "^[a-f]+$": {"type": "boolean"}},
        "additionalProperties": {"type": "null"},
    },
    "map": {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1, "maxProperties": 3},
    "tree": TREE,
    "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False, "minItems": 2},
    "union": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "a"}, "x": {"type": "number"}},
                "required": ["kind", "x"],
            },
            {"type": "object", "properties": {"kind": {"const": "b"}, "y": {"type": "string"}}, "required": ["kind"]},
        ]
    },
    "numbers": {
        "type": "array",
        "items": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25, "multipleOf": 0.25},
        "minItems": 1,
        "maxItems": 5,
    },
    "formats": {"enum": [None], "anyOf": [{"type": "null"}]},
    "dates": {"type": "string", "format": "date-time"},
    "addresses": {"type": "string", "format": "ipv4"},
    "all of": {"allOf": [{"type": "string", "minLength": 3}, {"maxLength": 5}, {"pattern": "^[a-c]"}]},
}

EXPRESSIONS = [
    r"\d{3}-\d{4}",
    r"(yes|no|maybe)( (very|quite) much)?",
    r"[A-ZÄÖÜ][a-zäöüß]{2,8}(-[A-Z]\w{1,4})?",
    r"[^\x00-\x7f]{2,5}",
    r"(?i:abc){1,3}|🎉+x",
    r"a.{0,10}z",
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_outputs_match_their_schema(compiler: GrammarCompiler, neox: TextTokenizer, name: str, seed: int) -> None:
    schema = SCHEMAS[name]
    text = random_output(compiler.compile(GrammarSpec("json_schema", json.dumps(schema))).start(), neox, seed)
    Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("seed", SEEDS)
def test_json_objects(compiler: GrammarCompiler, neox: TextTokenizer, seed: int) -> None:
    text = random_output(compiler.compile(GrammarSpec("json_object")).start(), neox, seed)
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_outputs_match_their_expression(
    compiler: GrammarCompiler, neox: TextTokenizer, pattern: str, seed: int
) -> None:
    text = random_output(compiler.compile(GrammarSpec("regex", pattern)).start(), neox, seed)
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("choice", '["one", "one two", "ein ß", ""]', r"one( two)?|ein ß|"),
        ("grammar", 'start: sum\nsum: N (OP N)*\nOP: "+" | "-"\nN: /[0-9]{1,3}/', r"\d{1,3}([+-]\d{1,3})*"),
    ],
)
def test_outputs_match_their_choice_or_grammar(
    compiler: GrammarCompiler, neox: TextTokenizer, kind: GrammarKind, text: str, expected: str, seed: int
) -> None:
    assert re.fullmatch(expected, random_output(compiler.compile(GrammarSpec(kind, text)).start(), neox, seed))


def test_the_choices_of_a_request_are_independent(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    compiled = compiler.compile(GrammarSpec("json_schema", json.dumps(TREE)))
    first, second = compiled.start(), compiled.start()
    first_text = random_output(first, neox, 1)
    assert random_output(second, neox, 1) == first_text
    assert random_output(compiled.start(), neox, 2) != first_text
