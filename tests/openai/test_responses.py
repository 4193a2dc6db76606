"""/v1/responses: what chat gets of a request, and what its output becomes."""

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pydantic
import pytest
from fake_backend import FakeBackend, likelihood
from test_errors import check_error, post
from test_protocol import check_type
from test_tools import ARGUMENTS, CALL, CITY, NOTHING, TIME_CALL, check_choice, generate

from mpt_serve.errors import RequestError
from mpt_serve.openai.backend import Readiness
from mpt_serve.openai.protocol.response_bodies import ResponseBody, ResponseEvent
from mpt_serve.text.chat_template import ChatTemplateError

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "description": "Of a city.", "parameters": CITY}
TIME = {"type": "function", "name": "time.now"}
TOOLS: list[Any] = [WEATHER, TIME]
NAMED = {"type": "function", "name": "time.now"}
EARLIER = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "21"}
LOGPROBS = {"include": ["message.output_text.logprobs"]}


def respond(http: httpx.Client, input: Any = "Hi", **body: Any) -> dict[str, Any]:
    response = post(http, PATH, {"input": input, **body})
    assert response.status_code == 200, response.text
    whole: dict[str, Any] = response.json()
    check_type(ResponseBody, whole)
    return whole


def events(http: httpx.Client, input: Any = "Hi", **body: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, having checked their frame, order and shapes."""
    response = post(http, PATH, {"input": input, "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, last = response.text.split("\n\n")
    assert last == ""
    pairs = [block.removeprefix("event: ").split("\ndata: ") for block in blocks if not block.startswith(":")]
    found = [json.loads(data) for _, data in pairs]
    assert [event["type"] for event in found] == [name for name, _ in pairs]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    for event in found:
        check_type(ResponseEvent, event)
    return found


def types(found: list[dict[str, Any]]) -> list[str]:
    """Return the types of events, equal ones that follow each other as one."""
    names = [event["type"].removeprefix("response.") for event in found]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def without_ids(whole: dict[str, Any]) -> dict[str, Any]:
    items = [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in whole["output"]]
    return {**whole, "id": None, "created_at": None, "output": items}


class TestWhole:
    def test_shape(self, http: httpx.Client) -> None:
        whole = respond(http)
        assert whole.pop("id").startswith("resp-")
        assert isinstance(whole.pop("created_at"), int)
        [message] = whole.pop("output")
        assert message.pop("id").startswith("msg-")
        text = {"type": "output_text", "text": "[user]Hi[assistant]", "annotations": [], "logprobs": []}
        assert message == {"type": "message", "status": "completed", "role": "assistant", "content": [text]}
        assert whole == {
            "object": "response",
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "model": "mpt-echo",
            "usage": {
                "input_tokens": 19,
                "input_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 0},
                "output_tokens": 20,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 39,
            },
            "background": False,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0,
            "truncation": "disabled",
        }

    def test_what_the_request_says_comes_back(self, http: httpx.Client) -> None:
        schema = {"type": "object"}
        named = {"type": "json_schema", "name": "a", "schema": schema}
        fields = {
            "instructions": "Be brief.",
            "max_output_tokens": 9,
            "metadata": {"a": "b"},
            "parallel_tool_calls": False,
            "temperature": 0.5,
            "top_p": 0.25,
            "top_logprobs": 2,
        }
        whole = respond(http, **fields, text={"format": named}, tools=TOOLS, tool_choice=NAMED, store=False)
        assert {name: whole[name] for name in fields} == fields
        assert whole["text"] == {"format": {**named, "description": None, "strict": True}}
        plain = {"description": None, "parameters": None}
        assert whole["tools"] == [{**WEATHER, "strict": True}, {**TIME, **plain, "strict": True}]
        assert whole["tool_choice"] == NAMED
        assert respond(http, text={"format": {"type": "json_object"}})["text"] == {"format": {"type": "json_object"}}

    def test_what_the_limit_cuts_off_is_incomplete(self, http: httpx.Client) -> None:
        whole = respond(http, max_output_tokens=3)
        assert whole["status"] == "incomplete"
        assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
        [message] = whole["output"]
        assert message["status"] == "incomplete"
        assert message["content"][0]["text"] == "[us"

    def test_text_and_calls_are_items(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, f"Let me see.\n{CALL}\n{TIME_CALL}")
        whole = respond(http, tools=TOOLS)
        message, weather, time = whole["output"]
        assert message["content"][0]["text"] == "Let me see.\n"
        assert weather.pop("id").startswith("fc-")
        assert weather.pop("call_id").startswith("call-")
        assert weather == {"type": "function_call", "status": "completed", "name": "weather", "arguments": ARGUMENTS}
        assert (time["name"], time["arguments"]) == ("time.now", "{}")
        assert whole["status"] == "completed"

    def test_a_call_that_is_cut_off(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, CALL)
        whole = respond(http, tools=TOOLS, max_output_tokens=60)
        [call] = whole["output"]
        assert (whole["status"], call["status"]) == ("incomplete", "incomplete")
        assert ARGUMENTS.startswith(call["arguments"])

    def test_no_text_is_an_empty_message(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, "")
        [message] = respond(http)["output"]
        assert message["content"][0]["text"] == ""
        found = types(events(http))
        assert "output_text.delta" not in found
        assert "output_text.done" in found

    @pytest.mark.parametrize(("count", "fields"), [(0, LOGPROBS), (2, {"top_logprobs": 2})])
    def test_log_probabilities_are_those_of_the_text(
        self, http: httpx.Client, backend: FakeBackend, count: int, fields: dict[str, Any]
    ) -> None:
        generate(backend, f"日 ok\n{CALL}")
        whole = respond(http, tools=TOOLS, **fields)
        [part] = whole["output"][0]["content"]
        entries = part["logprobs"]
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == part["text"] == "日 ok\n"
        ids = backend.tokenizer.encode("日 ok\n")
        assert [entry["logprob"] for entry in entries] == [likelihood(own, 0).logprob for own in ids]
        assert all(count <= len(entry["top_logprobs"]) <= count + (count > 0) for entry in entries)
        deltas = [event for event in events(http, tools=TOOLS, **fields) if "text.delta" in event["type"]]
        assert [entry for event in deltas for entry in event["logprobs"]] == entries


class TestStreams:
    def test_events_of_a_message(self, http: httpx.Client, backend: FakeBackend) -> None:
        found = events(http)
        assert types(found) == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        created, _, added, part, *deltas, text, part_done, item_done, completed = found
        assert created["response"]["status"] == "in_progress"
        assert created["response"]["output"] == []
        assert created["response"]["usage"] is None
        assert added["item"]["status"] == "in_progress"
        assert added["item"]["content"] == []
        assert part["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        assert len(deltas) > 3
        assert "".join(event["delta"] for event in deltas) == text["text"] == "[user]Hi[assistant]"
        assert part_done["part"]["text"] == text["text"]
        assert completed["response"]["output"] == [item_done["item"]]
        item = item_done["item"]["id"]
        assert {event["item_id"] for event in (part, *deltas, text, part_done)} == {item} == {added["item"]["id"]}
        assert {event["output_index"] for event in (added, part, *deltas, text, part_done, item_done)} == {0}

    @pytest.mark.parametrize("size", [1, 7, 1000])
    @pytest.mark.parametrize("text", ["Hello", f"So.\n{CALL}\n{TIME_CALL}", TIME_CALL, "a <tool_ca"])
    @pytest.mark.parametrize("limit", [400, 30])
    def test_they_end_with_the_whole_response(
        self, http: httpx.Client, backend: FakeBackend, size: int, text: str, limit: int
    ) -> None:
        generate(backend, text)
        backend.ids_per_delta = size
        body: dict[str, Any] = {"tools": TOOLS, "max_output_tokens": limit, "top_logprobs": 1}
        whole, found = respond(http, **body), events(http, **body)
        assert found[-1]["type"] == f"response.{whole['status']}"
        assert without_ids(found[-1]["response"]) == without_ids(whole)
        items: dict[int, Any] = {}
        for event in found:
            kind = event["type"].removeprefix("response.")
            if kind == "output_item.added":
                items[event["output_index"]] = event["item"]["type"], ""
            elif kind in ("output_text.delta", "function_call_arguments.delta"):
                own, before = items[event["output_index"]]
                items[event["output_index"]] = own, before + event["delta"]
            elif kind == "output_item.done":
                item = event["item"]
                content = item["arguments"] if "arguments" in item else item["content"][0]["text"]
                assert items[event["output_index"]] == (item["type"], content)
        assert len(items) == len(whole["output"])

    def test_one_that_fails_says_so_and_what_came_before(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.fail_after = 4
        found = events(http)
        failed = found[-1]["response"]
        assert found[-1]["type"] == "response.failed"
        assert failed["status"] == "failed"
        assert failed["error"]["code"] == "server_error"
        assert "its log has the details" in failed["error"]["message"]
        assert failed["output"][0]["status"] == "incomplete"
        assert "[user]Hi".startswith(failed["output"][0]["content"][0]["text"])

    def test_an_error_before_it_begins_has_its_status(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.refusal = ChatTemplateError("no")
        check_error(post(http, PATH, {"input": "a", "stream": True}), 400)


class TestConversations:
    def test_a_string_is_a_message_of_the_user(self, http: httpx.Client, backend: FakeBackend) -> None:
        respond(http, "Hi", instructions="Be brief.")
        messages, tools = backend.conversations[-1]
        assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert not tools

    def test_items(self, http: httpx.Client, backend: FakeBackend) -> None:
        text = {"type": "input_text", "text": "How warm?"}
        respond(
            http,
            [
                {"role": "developer", "content": "A"},
                {"type": "message", "role": "user", "content": [text, text], "id": "msg-1", "status": "completed"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "I see.", "annotations": []}]},
                EARLIER,
                {**EARLIER, "call_id": "c2"},
                {**RESULT, "output": [text]},
                {**RESULT, "call_id": "c2"},
                {**EARLIER, "call_id": "c3"},
                {**RESULT, "call_id": "c3"},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            ],
            tools=TOOLS,
        )
        messages, tools = backend.conversations[-1]
        call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
        result = {"role": "tool", "name": "weather"}
        assert messages == [
            {"role": "system", "content": "A"},
            {"role": "user", "content": "How warm?\nHow warm?"},
            {
                "role": "assistant",
                "content": "I see.",
                "tool_calls": [{"id": "c1", **call}, {"id": "c2", **call}],
            },
            {**result, "content": "How warm?", "tool_call_id": "c1"},
            {**result, "content": "21", "tool_call_id": "c2"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c3", **call}]},
            {**result, "content": "21", "tool_call_id": "c3"},
            {"role": "assistant", "content": "No."},
        ]
        assert [tool["function"]["name"] for tool in tools] == ["weather", "time.now"]

    def test_an_output_can_be_sent_back(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, f"So.\n{CALL}")
        output = respond(http, tools=TOOLS, top_logprobs=1)["output"]
        result = {**RESULT, "call_id": output[1]["call_id"]}
        respond(http, [{"role": "user", "content": "Hi"}, *output, result], tools=TOOLS)
        messages, _ = backend.conversations[-1]
        assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
        assert messages[1]["content"] == "So.\n"

    @pytest.mark.parametrize(
        ("choice", "content", "places", "at_most"),
        [
            (None, True, [0, 1], 16),
            ("auto", True, [0, 1], 16),
            ("required", False, [0, 1], 16),
            (NAMED, False, [1], 1),
            ({"type": "allowed_tools", "mode": "auto", "tools": [NAMED]}, True, [1], 16),
            ({"type": "allowed_tools", "mode": "required", "tools": [NAMED, WEATHER]}, False, [0, 1], 16),
        ],
    )
    def test_the_choice_of_tools(
        self, http: httpx.Client, backend: FakeBackend, choice: Any, content: bool, places: list[int], at_most: int
    ) -> None:
        respond(http, tools=TOOLS, tool_choice=choice)
        check_choice(backend, content, places, at_most)

    def test_none_leaves_the_tools_out(self, http: httpx.Client, backend: FakeBackend) -> None:
        respond(http, tools=TOOLS, tool_choice="none")
        assert not backend.conversations[-1][1]
        assert backend.grammars == [None]

    def test_a_tool_without_parameters_has_none(self, http: httpx.Client, backend: FakeBackend) -> None:
        respond(http, tools=[TIME])
        assert backend.conversations[-1][1] == [
            {"type": "function", "function": {"name": "time.now", "parameters": NOTHING}}
        ]

    @pytest.mark.parametrize(
        ("format", "kind"),
        [
            ({"type": "text"}, None),
            ({"type": "json_object"}, "json_object"),
            ({"type": "json_schema", "name": "a", "schema": {"type": "array"}, "strict": False}, "json_schema"),
        ],
    )
    def test_the_format_of_the_text(self, http: httpx.Client, backend: FakeBackend, format: Any, kind: Any) -> None:
        respond(http, text={"format": format, "verbosity": "medium"})
        grammar = backend.grammars[-1]
        assert (grammar and grammar.kind) == kind

    def test_fields_of_every_request_to_generate(self, http: httpx.Client, backend: FakeBackend) -> None:
        fields = {"temperature": 0.5, "top_p": 0.5, "top_k": 5, "seed": 7, "priority": 2, "cache_salt": "s"}
        whole = respond(http, **fields, stop=["e", "i"], logit_bias={"3": -1}, min_tokens=2, stop_token_ids=[9])
        params = backend.started[-1][1]
        assert {name: getattr(params, name) for name in fields} == fields
        assert (params.logit_bias, params.min_tokens, params.stop_token_ids) == (((3, -1.0),), 2, (9,))
        assert whole["output"][0]["content"][0]["text"] == "[us"


def item(**members: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "Hi"}, members]}


def tool(**members: Any) -> dict[str, Any]:
    return {"tools": [TIME, {"type": "function", "name": "f", **members}]}


def choice(value: Any) -> dict[str, Any]:
    return {"tools": TOOLS, "tool_choice": value}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 1}, "input"),
        ({"input": {}}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": [1]}, "input[0]"),
        (item(), "input[1].role"),
        (item(role="user"), "input[1].content"),
        (item(role="tool", content="a"), "input[1].role"),
        (item(role="user", content=1), "input[1].content"),
        (item(role="user", content="\ud800"), "input[1].content"),
        (item(role="user", content=[{"type": "input_image"}]), "input[1].content[0].type"),
        (item(role="user", content=[{"type": "input_text"}]), "input[1].content[0].text"),
        (item(role="user", content="a", call_id="c"), "input[1].call_id"),
        (item(type="reasoning", summary=[]), "input[1].type"),
        (item(type="item_reference", id="msg-1"), "input[1].type"),
        (item(type=1), "input[1].type"),
        (item(type="function_call", call_id="c", name="f"), "input[1].arguments"),
        (item(type="function_call", call_id="c", name="a b", arguments=""), "input[1].name"),
        (item(type="function_call_output", call_id="c"), "input[1].output"),
        (item(type="function_call_output", call_id="c", output="a"), "input[1].call_id"),
        ({**item(type="function_call_output", call_id="c", output="a"), "instructions": "b"}, "input[1].call_id"),
        ({"instructions": 1}, "instructions"),
        ({"instructions": "\ud800"}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 500}, "input"),
        ({"input": "a" * 300}, "input"),
        ({"input": "a" * 4000}, "input"),
        ({"max_output_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        (tool(function={"name": "f"}), "tools[1].function"),
        (tool(name="a b"), "tools[1].name"),
        (tool(name="time.now"), "tools[1].name"),
        (tool(parameters=1), "tools[1].parameters"),
        (tool(parameters={"type": "string"}), "tools[1].parameters.type"),
        (tool(description="x" * 262_144), "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        (choice("any"), "tool_choice"),
        (choice(1), "tool_choice"),
        (choice({"type": "file_search"}), "tool_choice.type"),
        (choice({"type": "function"}), "tool_choice.name"),
        (choice({"type": "function", "name": "wind"}), "tool_choice.name"),
        (choice({"type": "allowed_tools", "tools": [NAMED]}), "tool_choice.mode"),
        (choice({"type": "allowed_tools", "mode": "auto", "tools": []}), "tool_choice.tools"),
        (choice({"type": "allowed_tools", "mode": "auto", "tools": [NAMED, 1]}), "tool_choice.tools[1]"),
        (
            choice({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "wind"}]}),
            "tool_choice.tools[0].name",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"text": "a"}, "text"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": 1}}, "text.format"),
        ({"text": {"format": {}}}, "text.format.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "text", "json_schema": {}}}}, "text.format"),
        ({"text": {"format": {"type": "json_object"}}, "ignore_eos": True}, "ignore_eos"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": 1}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a" * 65: ""}}, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"stream": 1}, "stream"),
        ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"temperature": 3}, "temperature"),
        ({"model": "other"}, "model"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "a"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"n": 2}, "n"),
        ({"mirostat": 2}, "mirostat"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_mistakes_are_refused_in_the_words_of_this_api(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    error = check_error(post(http, PATH, {"input": "Hi", **body}))
    assert error["param"] == param
    assert f"'{param}'" in error["message"] or error["code"] in ("context_length_exceeded", "model_not_found")
    assert "messages" not in error["message"] or param == "messages"
    assert "max_completion_tokens" not in error["message"] or param == "max_tokens"


def test_what_is_not_stored_is_refused_with_the_reason(http: httpx.Client) -> None:
    error = check_error(post(http, PATH, {"input": "a", "store": True}), 400, "unsupported_parameter")
    assert error["message"] == (
        "'store' is not offered: the server stores nothing: send the whole conversation as `input`."
    )


def test_fields_that_request_nothing_pass(http: httpx.Client) -> None:
    neutral = {"store": False, "background": False, "truncation": "disabled", "n": 1, "previous_response_id": None}
    none = {"reasoning": {}, "include": ["reasoning.encrypted_content"], "stream_options": {}, "user": "a"}
    assert respond(http, **neutral, **none)["store"] is False


def test_too_long_a_prompt_says_what_fits(http: httpx.Client) -> None:
    error = check_error(post(http, PATH, {"input": "Hi", "max_output_tokens": 250}), 400, "context_length_exceeded")
    assert error["message"] == (
        "This model's maximum context length is 256 tokens, and the prompt is too long: it has 19 tokens, and"
        " max_output_tokens = 250 are to be generated after it. Send at most 6 prompt tokens, which"
        " truncate_prompt_tokens cuts a prompt to, or max_output_tokens of at most 237."
    )


def test_errors_of_the_model_are_in_the_words_of_this_api(http: httpx.Client, backend: FakeBackend) -> None:
    backend.model = replace(backend.model, tools_refusal="it has no form for them")
    assert check_error(post(http, PATH, {"input": "a", "tools": TOOLS}), 400)["param"] == "tools"
    backend.model = replace(backend.model, chat_refusal="it has no template")
    assert check_error(post(http, PATH, {"input": "a"}), 400)["param"] == "input"


def test_a_server_that_loads_says_so(http: httpx.Client, backend: FakeBackend) -> None:
    backend.state = Readiness(ready=False)
    check_error(post(http, PATH, {"input": "a"}), 503, "loading")


def test_grammars_that_cannot_be_compiled_are_errors_of_the_format(http: httpx.Client, backend: FakeBackend) -> None:
    backend.refusal = RequestError("the schema cannot be used")
    body = {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}}
    assert check_error(post(http, PATH, body), 400)["param"] == "text.format"
    body = {"input": "a", "tools": TOOLS}
    assert check_error(post(http, PATH, body), 400)["param"] == "tools"


def test_unknown_fields_are_named_in_a_header(http: httpx.Client) -> None:
    items = [{"role": "user", "content": "a", "x": 1}]
    body = {"input": items, "y": 1, "tools": [{**TIME, "z": 1}], "text": {"u": 1}, "stream_options": {"v": 1}}
    header = post(http, PATH, body).headers["x-mpt-ignored-fields"]
    assert header == "y, input[0].x, tools[0].z, text.u, stream_options.v"
    assert "x-mpt-ignored-fields" not in post(http, PATH, {"input": "a"}).headers


class Booking(pydantic.BaseModel):
    persons: int


class TestOfficialClient:
    def test_whole(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model="mpt-echo", input="Hi", store=False)
        assert response.output_text == "[user]Hi[assistant]"
        assert response.status == "completed"
        assert response.usage is not None
        assert response.usage.total_tokens == 39

    def test_stream(self, client: openai.OpenAI) -> None:
        with client.responses.stream(model="mpt-echo", input="Hi") as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            assert text == stream.get_final_response().output_text == "[user]Hi[assistant]"

    def test_calls_and_their_results(self, client: openai.OpenAI, backend: FakeBackend) -> None:
        generate(backend, CALL)
        with client.responses.stream(model="mpt-echo", input="Hi", tools=TOOLS, tool_choice="required") as stream:
            arguments = "".join(
                event.delta for event in stream if event.type == "response.function_call_arguments.delta"
            )
            response = stream.get_final_response()
        [call] = response.output
        assert call.type == "function_call"
        assert call.arguments == arguments == ARGUMENTS
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
        again: Any = [{"role": "user", "content": "Hi"}, *response.output, result]
        client.responses.create(model="mpt-echo", input=again, tools=TOOLS)
        messages, _ = backend.conversations[-1]
        assert [message["role"] for message in messages] == ["user", "assistant", "tool"]

    def test_structured_output(self, client: openai.OpenAI, backend: FakeBackend) -> None:
        generate(backend, '{"persons": 2}')
        response = client.responses.parse(model="mpt-echo", input="Hi", text_format=Booking)
        assert response.output_parsed == Booking(persons=2)

    def test_errors_have_its_types(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="mpt-echo", input="Hi", previous_response_id="resp-1")
        assert (caught.value.param, caught.value.code) == ("previous_response_id", "unsupported_parameter")
