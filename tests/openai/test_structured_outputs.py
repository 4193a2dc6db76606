"""What the output must match, from the wire to the engine."""

import json
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from test_errors import GOOD, check_error, post

from mpt_serve.errors import BusyError, EngineClosedError, RequestError
from mpt_serve.structured_outputs.spec import GrammarSpec

SCHEMA = {"type": "object", "properties": {"naïve": {"type": "integer"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"naïve":{"type":"integer"}}}'
PATHS = ["/v1/completions", "/v1/chat/completions"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, GrammarSpec("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            GrammarSpec("json_schema", SCHEMA_TEXT),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, GrammarSpec("json_schema", SCHEMA_TEXT)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, GrammarSpec("json_schema", SCHEMA_TEXT)),
        ({"structured_outputs": {"json_object": True, "regex": None}}, GrammarSpec("json_object")),
        ({"structured_outputs": {"regex": "a+", "disable_any_whitespace": False}}, GrammarSpec("regex", "a+")),
        ({"structured_outputs": {"choice": ["é", 'b"']}}, GrammarSpec("choice", '["é", "b\\""]')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, GrammarSpec("grammar", 'start: "a"')),
        ({"guided_json": SCHEMA}, GrammarSpec("json_schema", SCHEMA_TEXT)),
        ({"guided_regex": "a|b"}, GrammarSpec("regex", "a|b")),
        ({"guided_choice": ["a"]}, GrammarSpec("choice", '["a"]')),
        ({"guided_grammar": "start: /a/"}, GrammarSpec("grammar", "start: /a/")),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, GrammarSpec("json_schema", SCHEMA_TEXT)),
        ({"json_schema": SCHEMA}, GrammarSpec("json_schema", SCHEMA_TEXT)),
        ({"json_schema": json.dumps(SCHEMA)}, GrammarSpec("json_schema", SCHEMA_TEXT)),
        ({"regex": "a+"}, GrammarSpec("regex", "a+")),
        ({"choice": ["a"]}, GrammarSpec("choice", '["a"]')),
        ({"grammar": 'root ::= "a"'}, GrammarSpec("grammar", 'root ::= "a"')),
        ({"ebnf": 'root ::= "a"'}, GrammarSpec("grammar", 'root ::= "a"')),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, GrammarSpec("regex", "a")),
        ({"response_format": None, "guided_json": None}, None),
    ],
)
def test_the_engine_gets_the_grammar(
    http: httpx.Client, backend: FakeBackend, path: str, body: dict[str, Any], grammar: GrammarSpec | None
) -> None:
    response = post(http, path, {**GOOD[path], **body})
    assert response.status_code == 200, response.text
    assert backend.grammars == [grammar]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "schemas": SCHEMA}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": 1}}, "response_format.schema"),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.schema"),
        ({"regex": 1}, "regex"),
        ({"json_schema": []}, "json_schema"),
        ({"choice": "a"}, "choice"),
        ({"ebnf": ""}, "ebnf"),
        ({"grammar": ["a"]}, "grammar"),
        ({"regex": "a", "guided_regex": "a"}, "regex"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 1}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": 1}}},
            "response_format.json_schema.strict",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "backtracking": True}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        (
            {"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
        ),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"a":' * 50 + "1" + "}" * 50}}, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"guided_json": 1}, "guided_json"),
        ({"guided_json": {"a": "\ud800"}}, "guided_json"),
        ({"guided_json": {"a": "x" * 65_536}}, "guided_json"),
        ({"guided_json": "\ud800"}, "guided_json"),
        ({"guided_json": '{"a": NaN}'}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": ["a"]}, "guided_regex"),
        ({"guided_regex": "a" * 65_537}, "guided_regex"),
        ({"guided_regex": "\ud800"}, "guided_regex"),
        ({"guided_grammar": 1}, "guided_grammar"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice"),
        ({"guided_choice": ["a" * 65_000, "b" * 65_000]}, "guided_choice"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_others_are_refused_by_name(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    assert check_error(post(http, path, {**GOOD[path], **body}), 400)["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ("/v1/responses", {"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ("/v1/messages", {"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)
def test_what_is_missing_for_a_type_is_said_to_be_required(
    http: httpx.Client, path: str, body: dict[str, Any], name: str
) -> None:
    messages = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    rest = {"input": "Hi"} if path == "/v1/responses" else messages
    error = check_error(post(http, path, {**rest, **body}), 400)
    assert error["message"].startswith(f"'{name}' is required where the type is")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [("guided_regex", "(a+)+b"), ("response_format", {"type": "json_object"}), ("structured_outputs", {"regex": "["})],
)
def test_what_the_engine_cannot_compile_is_an_error_of_the_field(
    http: httpx.Client, backend: FakeBackend, stream: bool, field: str, value: Any
) -> None:
    backend.refusal = RequestError("the expression takes too long")
    error = check_error(post(http, PATHS[0], {"prompt": "a", field: value, "stream": stream}), 400, "invalid_value")
    assert (error["param"], error["message"]) == (field, "The expression takes too long.")


def test_an_engine_that_is_busy_with_grammars_may_be_retried(http: httpx.Client, backend: FakeBackend) -> None:
    backend.refusal = BusyError("too many grammars are being compiled; try again later")
    response = post(http, PATHS[0], {"prompt": "a", "guided_regex": "a"})
    assert check_error(response, 503, "overloaded")["param"] is None
    assert int(response.headers["retry-after"]) > 0


def test_an_engine_that_stops_is_no_fault_of_the_field(http: httpx.Client, backend: FakeBackend) -> None:
    backend.refusal = EngineClosedError("closed")
    assert check_error(post(http, PATHS[0], {"prompt": "a", "guided_regex": "a"}), 503)["param"] is None
