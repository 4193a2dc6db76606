"""/v1/messages: what chat gets of a request, and what its output becomes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from typing import Any

import anthropic
import httpx
import pytest
from fake_backend import FakeBackend
from loopback_server import Server
from test_errors import check_error, post
from test_protocol import check_type
from test_tools import ARGUMENTS, CALL, CITY, TIME_CALL, check_choice, generate

from mpt_serve.errors import RequestError
from mpt_serve.openai.error_forms import broken_stream, error_response
from mpt_serve.openai.errors import InternalServerError
from mpt_serve.openai.protocol.anthropic_bodies import MessageBody, MessageEvent

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
WEATHER = {"name": "weather", "description": "Of a city.", "input_schema": CITY}
TIME = {"type": "custom", "name": "time.now", "input_schema": {"type": "object", "properties": {}}}
TOOLS: list[Any] = [WEATHER, TIME]
EARLIER = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Zürich"}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "21"}


def message_of(http: httpx.Client, messages: Any = HI, **body: Any) -> dict[str, Any]:
    response = post(http, PATH, {"messages": messages, "max_tokens": 200, **body})
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()
    check_type(MessageBody, message)
    return message


def events(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, having checked their frame and shapes."""
    response = post(http, PATH, {"messages": HI, "max_tokens": 200, "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, last = response.text.split("\n\n")
    assert last == ""
    pairs = [block.removeprefix("event: ").split("\ndata: ") for block in blocks]
    found = [json.loads(data) for _, data in pairs]
    assert [event["type"] for event in found] == [name for name, _ in pairs]
    for event in found:
        check_type(MessageEvent, event)
    return found


def joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a stream's events make, as its readers put it together."""
    message: dict[str, Any] = found[0]["message"]
    texts: dict[int, str] = {}
    open_block: int | None = None
    for event in found[1:]:
        match event["type"]:
            case "content_block_start":
                assert open_block is None
                open_block = event["index"]
                assert open_block == len(message["content"])
                message["content"].append(event["content_block"])
                texts[open_block] = ""
            case "content_block_delta":
                assert event["index"] == open_block
                delta = event["delta"]
                assert (
                    delta["type"]
                    == {"text": "text_delta", "tool_use": "input_json_delta"}[message["content"][open_block]["type"]]
                )
                texts[open_block] += delta.get("text", delta.get("partial_json"))
            case "content_block_stop":
                assert event["index"] == open_block
                open_block = None
            case "message_delta":
                message |= event["delta"]
                message["usage"] = event["usage"]
    assert open_block is None
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            block["text"] = texts[index]
        elif message["stop_reason"] == "tool_use":
            block["input"] = json.loads(texts[index])
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{**block, "id": None} for block in message["content"]]
    return {**message, "id": None, "content": blocks}


class TestWhole:
    def test_shape(self, http: httpx.Client) -> None:
        message = message_of(http)
        assert message.pop("id").startswith("msg-")
        assert message == {
            "type": "message",
            "role": "assistant",
            "model": "mpt-echo",
            "content": [{"type": "text", "text": "[user]Hi[assistant]"}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 10,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 9,
                "output_tokens": 20,
            },
        }

    @pytest.mark.parametrize(
        ("fields", "text", "reason", "sequence"),
        [
            ({"max_tokens": 3}, "[us", "max_tokens", None),
            ({"stop_sequences": ["x", "er]"]}, "[us", "stop_sequence", "er]"),
            ({"stop": "er]"}, "[us", "stop_sequence", "er]"),
            ({"stop_token_ids": [68]}, "[us", "end_turn", None),
        ],
    )
    def test_why_it_ends(
        self, http: httpx.Client, fields: dict[str, Any], text: str, reason: str, sequence: str | None
    ) -> None:
        message = message_of(http, **fields)
        assert message["content"] == [{"type": "text", "text": text}]
        assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
        assert without_ids(joined(events(http, **fields))) == without_ids(message)

    def test_text_and_calls_are_blocks(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, f"Let me see.\n{CALL}\n{TIME_CALL}")
        message = message_of(http, tools=TOOLS)
        text, weather, time = message["content"]
        assert text == {"type": "text", "text": "Let me see.\n"}
        assert weather.pop("id").startswith("call-")
        assert weather == {"type": "tool_use", "name": "weather", "input": json.loads(ARGUMENTS)}
        assert (time["name"], time["input"]) == ("time.now", {})
        assert message["stop_reason"] == "tool_use"

    def test_of_a_call_that_is_cut_off_there_is_what_is_complete(
        self, http: httpx.Client, backend: FakeBackend
    ) -> None:
        generate(backend, CALL)
        for limit in (50, 60, 62, 75):
            message = message_of(http, tools=TOOLS, max_tokens=limit)
            [block] = message["content"]
            assert message["stop_reason"] == "max_tokens"
            assert block["type"] == "tool_use"
            assert block["input"] in ({}, json.loads(ARGUMENTS))


class TestStreams:
    def test_events_of_a_text(self, http: httpx.Client) -> None:
        found = events(http)
        types = [event["type"] for event in found]
        assert types[:3] == ["message_start", "content_block_start", "ping"]
        assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert set(types[3:-3]) == {"content_block_delta"}
        assert len(types) > 9
        start = found[0]["message"]
        assert (start["content"], start["stop_reason"]) == ([], None)
        assert start["usage"]["input_tokens"] + start["usage"]["cache_read_input_tokens"] == 19
        assert start["usage"]["output_tokens"] == 0

    @pytest.mark.parametrize("size", [1, 7, 1000])
    @pytest.mark.parametrize("text", ["Hello", f"So.\n{CALL}\n{TIME_CALL}", TIME_CALL, "a <tool_ca", ""])
    @pytest.mark.parametrize("tools", [TOOLS, []])
    def test_they_make_the_whole_message(
        self, http: httpx.Client, backend: FakeBackend, size: int, text: str, tools: list[Any]
    ) -> None:
        generate(backend, text)
        backend.ids_per_delta = size
        whole = message_of(http, tools=tools)
        assert without_ids(joined(events(http, tools=tools))) == without_ids(whole)

    @pytest.mark.parametrize("limit", [40, 60, 75])
    def test_a_call_that_is_cut_off(self, http: httpx.Client, backend: FakeBackend, limit: int) -> None:
        generate(backend, CALL)
        found = events(http, tools=TOOLS, max_tokens=limit)
        pieces = [event["delta"]["partial_json"] for event in found if event["type"] == "content_block_delta"]
        assert ARGUMENTS.startswith("".join(pieces))
        assert joined(found)["stop_reason"] == "max_tokens"

    def test_one_that_fails_ends_with_an_error(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.fail_after = 4
        last = events(http)[-1]
        assert last["type"] == "error"
        assert last["error"]["type"] == "api_error"
        assert "its log has the details" in last["error"]["message"]


class TestConversations:
    def test_blocks_become_messages(self, http: httpx.Client, backend: FakeBackend) -> None:
        text = {"type": "text", "text": "How warm?", "cache_control": {"type": "ephemeral"}}
        message_of(
            http,
            [
                {"role": "user", "content": [text, text]},
                {"role": "assistant", "content": [{"type": "text", "text": "I see.", "citations": None}, EARLIER]},
                {"role": "user", "content": [RESULT, {**text, "text": "Thanks."}]},
                {"role": "assistant", "content": [{**EARLIER, "id": "c2"}, {**EARLIER, "id": "c3"}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c2", "is_error": True},
                        {"type": "tool_result", "tool_use_id": "c3", "content": [text]},
                    ],
                },
            ],
            system=[{"type": "text", "text": "Be brief."}],
            tools=TOOLS,
            max_tokens=50,
        )
        messages, tools = backend.conversations[-1]
        call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
        result = {"role": "tool", "name": "weather"}
        assert messages == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How warm?\nHow warm?"},
            {"role": "assistant", "content": "I see.", "tool_calls": [{"id": "c1", **call}]},
            {**result, "content": "21", "tool_call_id": "c1"},
            {"role": "user", "content": "Thanks."},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c2", **call}, {"id": "c3", **call}]},
            {**result, "content": "", "tool_call_id": "c2"},
            {**result, "content": "How warm?", "tool_call_id": "c3"},
        ]
        assert [tool["function"]["name"] for tool in tools] == ["weather", "time.now"]

    def test_the_last_message_of_the_assistant_is_continued(self, http: httpx.Client, backend: FakeBackend) -> None:
        message = message_of(http, [*HI, {"role": "assistant", "content": "It is"}])
        assert message["content"][0]["text"] == "[user]Hi[assistant]It is"  # without the beginning of another turn

    def test_after_a_call_another_turn_begins(self, http: httpx.Client, backend: FakeBackend) -> None:
        message = message_of(http, [*HI, {"role": "assistant", "content": [EARLIER]}])
        assert message["content"][0]["text"] == "[user]Hi[assistant][assistant]"

    def test_text_between_results_is_a_message(self, http: httpx.Client, backend: FakeBackend) -> None:
        content = [{"type": "text", "text": "So:"}, RESULT, {"type": "text", "text": "?"}]
        message_of(http, [*HI, {"role": "assistant", "content": [EARLIER]}, {"role": "user", "content": content}])
        messages, _ = backend.conversations[-1]
        assert [message["role"] for message in messages] == ["user", "assistant", "user", "tool", "user"]

    @pytest.mark.parametrize(
        ("choice", "content", "places", "at_most"),
        [
            (None, True, [0, 1], 16),
            ({"type": "auto"}, True, [0, 1], 16),
            ({"type": "auto", "disable_parallel_tool_use": True}, True, [0, 1], 1),
            ({"type": "any"}, False, [0, 1], 16),
            ({"type": "tool", "name": "time.now"}, False, [1], 1),
        ],
    )
    def test_the_choice_of_tools(
        self, http: httpx.Client, backend: FakeBackend, choice: Any, content: bool, places: list[int], at_most: int
    ) -> None:
        generate(backend, TIME_CALL)
        message_of(http, tools=TOOLS, tool_choice=choice)
        check_choice(backend, content, places, at_most)

    def test_none_leaves_the_tools_out(self, http: httpx.Client, backend: FakeBackend) -> None:
        message_of(http, tools=TOOLS, tool_choice={"type": "none"})
        assert not backend.conversations[-1][1]
        assert backend.grammars == [None]

    def test_the_text_may_have_a_schema(self, http: httpx.Client, backend: FakeBackend) -> None:
        message_of(http, output_config={"format": {"type": "json_schema", "schema": {"type": "array"}}})
        grammar = backend.grammars[-1]
        assert grammar is not None
        assert (grammar.kind, json.loads(grammar.text)) == ("json_schema", {"type": "array"})

    def test_fields_of_every_request_to_generate(self, http: httpx.Client, backend: FakeBackend) -> None:
        fields = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "seed": 7, "priority": 2, "cache_salt": "s"}
        message_of(http, **fields, logit_bias={"3": -1}, metadata={"user_id": "a"}, service_tier="auto")
        params = backend.started[-1][1]
        assert {name: getattr(params, name) for name in fields} == fields
        assert params.logit_bias == ((3, -1.0),)


def last(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [*HI, {"role": "assistant", "content": [EARLIER]}, {"role": role, "content": list(blocks)}]}


def tool(**members: Any) -> dict[str, Any]:
    return {"tools": [TIME, {"name": "f", "input_schema": {}, **members}]}


def choice(value: Any) -> dict[str, Any]:
    return {"tools": TOOLS, "tool_choice": value}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 500}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, "messages"),
        (last(1), "messages[2].content[0]"),
        (last({"type": "image", "source": {}}), "messages[2].content[0].type"),
        (last({"type": "thinking", "thinking": ""}), "messages[2].content[0].type"),
        (last({"type": "text"}), "messages[2].content[0].text"),
        (last({"type": "text", "text": 1}), "messages[2].content[0].text"),
        (last({"type": "text", "text": "a", "id": "c1"}), "messages[2].content[0].id"),
        (last({"type": "text", "text": "a", "content": "b"}), "messages[2].content[0].content"),
        (last({"type": "tool_result", "content": "a"}), "messages[2].content[0].tool_use_id"),
        (last({**RESULT, "content": [{"type": "image"}]}), "messages[2].content[0].content[0].type"),
        (last(RESULT, {**RESULT, "tool_use_id": "c2"}), "messages[2].content[1].tool_use_id"),
        ({**last({**RESULT, "tool_use_id": "c2"}), "system": "a"}, "messages[2].content[0].tool_use_id"),
        (last(EARLIER), "messages[2].content[0]"),
        (last(RESULT, role="assistant"), "messages[2].content[0]"),
        (last({**EARLIER, "input": "{}"}, role="assistant"), "messages[2].content[0].input"),
        (last({**EARLIER, "input": {"a": "\ud800"}}, role="assistant"), "messages[2].content[0].input"),
        (last({**EARLIER, "name": "a b"}, role="assistant"), "messages[2].content[0].name"),
        ({"messages": [*HI, {"role": "assistant", "content": " "}]}, "messages[1].content"),
        ({"system": 1}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": ["a"], "stop": "b"}, "stop"),
        ({"temperature": 3}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"min_tokens": 300}, "min_tokens"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        (tool(name="a b"), "tools[1].name"),
        (tool(name="time.now"), "tools[1].name"),
        (tool(input_schema=1), "tools[1].input_schema"),
        (tool(input_schema={"type": "string"}), "tools[1].input_schema.type"),
        (tool(description="x" * 262_144), "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        (choice("any"), "tool_choice"),
        (choice({"type": "some"}), "tool_choice.type"),
        (choice({"type": "tool"}), "tool_choice.name"),
        (choice({"type": "any", "name": "weather"}), "tool_choice.name"),
        (choice({"type": "tool", "name": "wind"}), "tool_choice.name"),
        (choice({"type": "auto", "disable_parallel_tool_use": 1}), "tool_choice.disable_parallel_tool_use"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"model": "other"}, "model"),
        ({"metadata": 1}, "metadata"),
        ({"stream": 1}, "stream"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_mistakes_are_refused_in_the_words_of_this_api(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    error = check_error(post(http, PATH, {"messages": HI, "max_tokens": 9, **body}))
    assert error["param"] == param
    assert f"'{param}'" in error["message"] or error["code"] in ("context_length_exceeded", "model_not_found")


def test_grammars_that_cannot_be_compiled_are_errors_of_the_format(http: httpx.Client, backend: FakeBackend) -> None:
    backend.refusal = RequestError("the schema cannot be used")
    format = {"type": "json_schema", "schema": {"type": "array"}}
    body = {"messages": HI, "max_tokens": 9, "output_config": {"format": format}}
    assert check_error(post(http, PATH, body), 400)["param"] == "output_config.format"


def test_unknown_fields_are_named_in_a_header(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}], "y": 1}]
    body = {"messages": messages, "z": 1, "tools": [{**TIME, "u": 1}], "output_config": {"v": 1}}
    expected = "z, messages[0].y, messages[0].content[0].x, tools[0].u, output_config.v"
    assert post(http, PATH, {**body, "max_tokens": 9}).headers["x-mpt-ignored-fields"] == expected
    assert post(http, COUNT, body).headers["x-mpt-ignored-fields"] == expected


class TestErrors:
    def test_form(self, http: httpx.Client) -> None:
        response = http.post(PATH, json={"messages": HI}, headers={"x-request-id": "mine"})
        assert response.json() == {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "'max_tokens' is required: an integer from 1 to 2^31 - 1.",
                "param": "max_tokens",
                "code": "invalid_value",
            },
            "request_id": "mine",
        }

    def test_types(self, http: httpx.Client, backend: FakeBackend) -> None:
        good = {"messages": HI, "max_tokens": 9}
        assert check_error(post(http, PATH, {**good, "model": "x"}), 404)["type"] == "not_found_error"
        assert check_error(http.get(PATH), 405)["type"] == "not_found_error"
        assert check_error(http.post(PATH, content=b"{}"), 415)["type"] == "invalid_request_error"
        backend.full = True
        for path in (PATH, "/messages"):
            assert check_error(post(http, path, good), 503, "overloaded")["type"] == "overloaded_error"
        backend.full = False
        backend.refusal = ValueError("secret")
        assert check_error(post(http, PATH, good), 500)["type"] == "api_error"

    @pytest.mark.parametrize("path", ["/v1/messages", "/messages", "/llm/v1/messages/count_tokens"])
    def test_in_front_of_the_application_they_have_the_same_form(self, path: str) -> None:
        error = InternalServerError("It ended.")
        scope = {"path": path, "headers": [(b"accept", b"*"), (b"x-request-id", b"mine")]}
        body = json.loads(bytes(error_response(error, scope).body))
        assert (body["type"], body["request_id"]) == ("error", "mine")
        assert json.loads(bytes(error_response(error, {**scope, "headers": []}).body))["request_id"] is None
        head, data, *rest = broken_stream(error, path).split(b"\n")
        assert (head, rest) == (b"event: error", [b"", b""])
        assert json.loads(data.removeprefix(b"data: ")) == {**body, "request_id": None}

    def test_other_paths_have_openais(self) -> None:
        ended = broken_stream(InternalServerError("It ended."), "/v1/responses")
        assert ended.startswith(b'data: {"error":{"message":"It ended."')
        assert ended.endswith(b"}}\n\ndata: [DONE]\n\n")


class TestCounts:
    def test_tokens(self, http: httpx.Client, backend: FakeBackend) -> None:
        assert http.post(COUNT, json={"messages": HI, "system": "A", "tools": TOOLS}).json() == {"input_tokens": 28}
        assert len(backend.conversations[-1][1]) == 2
        assert not backend.started

    def test_mistakes(self, http: httpx.Client) -> None:
        assert check_error(post(http, COUNT, {"messages": []}), 400)["param"] == "messages"
        assert check_error(post(http, COUNT, last({**RESULT, "tool_use_id": "c2"})), 400)["param"] == (
            "messages[2].content[0].tool_use_id"
        )
        assert check_error(post(http, COUNT, {"messages": HI, "model": "x"}), 404)["param"] == "model"


@pytest.fixture
def official(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


class TestOfficialClient:
    def test_whole(self, official: anthropic.Anthropic) -> None:
        message = official.messages.create(model="mpt-echo", max_tokens=100, messages=HI)
        assert message.content[0].text == "[user]Hi[assistant]"  # type: ignore[union-attr]
        assert message.stop_reason == "end_turn"

    def test_stream(self, official: anthropic.Anthropic) -> None:
        with official.messages.stream(model="mpt-echo", max_tokens=100, messages=HI, system="A") as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == final.content[0].text == "[system]A[user]Hi[assistant]"  # type: ignore[union-attr]
        assert final.usage.output_tokens == 29

    def test_calls_and_their_results(self, official: anthropic.Anthropic, backend: FakeBackend) -> None:
        generate(backend, f"So.\n{CALL}")
        fields: dict[str, Any] = {"model": "mpt-echo", "max_tokens": 300, "tools": TOOLS}
        with official.messages.stream(**fields, messages=HI, tool_choice={"type": "any"}) as stream:
            message = stream.get_final_message()
        assert message.stop_reason == "tool_use"
        _, call = message.content
        assert call.type == "tool_use"
        assert call.input == json.loads(ARGUMENTS)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "21"}
        again: Any = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        official.messages.create(**fields, messages=again)
        messages, _ = backend.conversations[-1]
        assert [message["role"] for message in messages] == ["user", "assistant", "tool"]

    def test_models(self, official: anthropic.Anthropic) -> None:
        (listed,) = official.models.list()
        assert listed == official.models.retrieve("mpt-echo")
        assert (listed.id, listed.type, listed.display_name) == ("mpt-echo", "model", "mpt-echo")
        assert (listed.max_input_tokens, listed.created_at.tzinfo) == (256, UTC)

    def test_batches_of_messages_are_refused_in_its_form(self, official: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError) as caught:
            official.messages.batches.list()
        assert caught.value.type == "not_found_error"

    def test_count(self, official: anthropic.Anthropic) -> None:
        assert official.messages.count_tokens(model="mpt-echo", messages=HI).input_tokens == 19

    def test_errors_have_its_types(self, official: anthropic.Anthropic, backend: FakeBackend) -> None:
        with pytest.raises(anthropic.BadRequestError, match="thinking"):
            official.messages.create(
                model="mpt-echo", max_tokens=9, messages=HI, thinking={"type": "enabled", "budget_tokens": 1024}
            )
        backend.fail_after = 2
        with (
            pytest.raises(anthropic.APIStatusError, match="its log has the details"),
            official.messages.stream(model="mpt-echo", max_tokens=9, messages=HI) as stream,
        ):
            stream.until_done()


def test_a_model_without_a_template_says_so(http: httpx.Client, backend: FakeBackend) -> None:
    backend.model = replace(backend.model, chat_refusal="it has no template")
    assert check_error(post(http, PATH, {"messages": HI, "max_tokens": 9}), 400)["param"] == "messages"
