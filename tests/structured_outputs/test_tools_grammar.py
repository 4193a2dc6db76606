"""Messages with calls of tools: the tag decides, and arguments are valid under their schema."""

import json
from typing import Any

import pytest
from following import accepts, random_output
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.tokenizer import TextTokenizer
from mpt_serve.text.tool_calls import ToolCallParser

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
EMPTY: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern <tool_call> }\\n</tool_call>"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "time.now", "arguments": {}}\n</tool_call>'


def tools_spec(schemas: dict[str, Any], content: Any = True, at_most: int = 3) -> GrammarSpec:
    """Return the spec of calls of functions with these names and schemas."""
    tools = [
        {"name": f"tools[{i}]", "begin": f'\n{{"name": "{name}", "arguments": ', "schema": schema, "end": END}
        for i, (name, schema) in enumerate(schemas.items())
    ]
    spec = {"content": content, "trigger": "<tool_call>", "tools": tools, "separator": "\n", "at_most": at_most}
    return GrammarSpec("tools", json.dumps(spec))


END = "}\n</tool_call>"
BOTH = {"weather": CITY, "time.now": EMPTY}


@pytest.mark.parametrize(
    ("text", "content", "at_most", "allowed"),
    [
        ("Hello", True, 3, True),
        ("", True, 3, True),
        ("a <tool_ca", True, 3, True),
        ("a <tool_call>", True, 3, False),
        (CALL, True, 3, True),
        (f"It is\n{CALL}\n{OTHER}\n{CALL}", True, 3, True),
        (f"{CALL}\n{OTHER}\n{CALL}\n{CALL}", True, 3, False),
        (f"{CALL}\n{OTHER}", True, 1, False),
        (f"{CALL} and so on", True, 3, False),
        (CALL.replace('"city"', '"town"'), True, 3, False),
        (CALL.replace("weather", "wind"), True, 3, False),
        (CALL, False, 1, True),
        ("Hello", False, 1, False),
        ("", False, 1, False),
        (f"Hello {CALL}", False, 1, False),
        ('{"a": 1}', {"type": "object", "properties": {"a": {"type": "integer"}}}, 1, True),
        ("{}", {"type": "object", "required": ["a"]}, 1, False),
        ("Hello", {"type": "object"}, 1, False),
        (OTHER, {"type": "object"}, 1, True),
        (f"{{}}{OTHER}", {"type": "object"}, 1, False),
    ],
)
def test_texts(
    compiler: GrammarCompiler, neox: TextTokenizer, text: str, content: Any, at_most: int, allowed: bool
) -> None:
    state = compiler.compile(tools_spec(BOTH, content, at_most)).start()
    assert accepts(state, neox.encode(text), neox.eos_token_ids[0]) == allowed


@pytest.mark.parametrize(
    ("schemas", "content", "words"),
    [
        ({"a": EMPTY, "b": {"not": {}}}, True, 'tools\\[1\\]: .*"not"'),
        ({"a": {"type": "object", "properties": {"x": {"pattern": "["}}}}, True, "tools\\[0\\]: "),
        ({"a": {"const": "\x7f"}}, True, "tools\\[0\\]: it holds a control character"),
        ({"a": EMPTY}, {"if": {}}, 'the content: .*"if"'),
    ],
)
def test_errors_name_the_tool(compiler: GrammarCompiler, schemas: dict[str, Any], content: Any, words: str) -> None:
    for _ in range(2):  # compiled, and remembered
        with pytest.raises(RequestError, match=f"^the tools cannot be used: {words}"):
            compiler.compile(tools_spec(schemas, content))


# Schemas as clients make them: records, lists, unions, numbers with bounds, optional and nested members.
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(1, 8)),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, *[st.integers(-99, 99)] * 2
    ),
    st.just({"type": "number", "minimum": -10, "maximum": 10}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}]),
    st.sampled_from([{"type": "string", "format": "date"}, {"type": "string", "pattern": "^[a-c]{1,3}$"}]),
    st.builds(lambda values: {"enum": values}, st.lists(st.one_of(NAMES, st.integers(-5, 5)), min_size=1, max_size=3)),
)


def records(members: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def record(properties: dict[str, Any], optional: set[str], closed: bool) -> dict[str, Any]:
        required = [name for name in properties if name not in optional]
        schema = {"type": "object", "properties": properties, "required": required}
        return {**schema, "additionalProperties": False} if closed else schema

    return st.dictionaries(NAMES, members, max_size=3).flatmap(
        lambda properties: st.builds(
            record, st.just(properties), st.sets(st.sampled_from(sorted(properties) or ["-"])), st.booleans()
        )
    )


VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        records(inner),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(1, 3)),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    ),
    max_leaves=4,
)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(schemas=st.lists(records(VALUES), min_size=1, max_size=3), seed=st.integers(0, 2**32), split=st.integers(1, 20))
def test_arguments_of_random_outputs_are_valid(
    compiler: GrammarCompiler, neox: TextTokenizer, schemas: list[dict[str, Any]], seed: int, split: int
) -> None:
    """Whatever ids are drawn: a weak model can do no worse."""
    named = {f"f{i}": schema for i, schema in enumerate(schemas)}
    state = compiler.compile(tools_spec(named, content=False, at_most=2)).start()
    text = random_output(state, neox, seed, max_tokens=3000)
    parser = ToolCallParser()
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for start in range(0, len(text), split):
        content, pieces = parser.push(text[start : start + split])
        assert content == ""
        for piece in pieces:
            if piece.name is not None:
                names[piece.index] = piece.name
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    assert parser.complete
    assert names.keys() == arguments.keys() == set(range(parser.num_calls))
    for index, name in names.items():
        Draft202012Validator(named[name]).validate(json.loads(arguments[index]))
