"""Tools over HTTP: what the prompt and the grammar get, and what generated calls become."""

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fake_backend import FakeBackend
from test_chat import HI, PATH, chat
from test_completions import events
from test_errors import check_error

from mpt_serve.errors import RequestError

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "time.now"}}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TIME_DEFINITION = {"type": "function", "function": {"name": "time.now", "parameters": NOTHING}}
TOOLS = [WEATHER, TIME]
ARGUMENTS = '{"city": "Zürich </tool_call>"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
TIME_CALL = '<tool_call>\n{"name": "time.now", "arguments": {}}\n</tool_call>'
WEATHER_ONLY = {"type": "function", "function": {"name": "weather"}}
EARLIER = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
}


def generate(backend: FakeBackend, text: str) -> None:
    """Let the backend generate a text."""
    backend.outputs = [backend.tokenizer.encode(text)]
    backend.model = replace(backend.model, max_model_len=4096)


def message_of(http: httpx.Client, **body: Any) -> tuple[dict[str, Any], str]:
    response = chat(http, **{"tools": TOOLS, **body})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"], choice["finish_reason"]


def deltas_of(http: httpx.Client, **body: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the deltas of a streamed message, and its finish_reason; no chunk is empty."""
    choices = [chunk["choices"][0] for chunk in events(chat(http, stream=True, **{"tools": TOOLS, **body}))]
    assert all(choice["delta"] or choice["finish_reason"] for choice in choices)
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return [choice["delta"] for choice in choices], choices[-1]["finish_reason"]


def grammar_of(backend: FakeBackend) -> dict[str, Any]:
    """Return what the last request's output had to match."""
    grammar = backend.grammars[-1]
    assert grammar is not None
    assert grammar.kind == "tools"
    spec: dict[str, Any] = json.loads(grammar.text)
    return spec


def check_choice(backend: FakeBackend, content: Any, places: list[int], at_most: int) -> None:
    """Check which of TOOLS the last request's output could call, how often, and what text it could have."""
    spec = grammar_of(backend)
    assert (spec["content"], spec["at_most"]) == (content, at_most)
    assert [tool["name"] for tool in spec["tools"]] == [f"tools[{i}].function.parameters" for i in places]


class TestResponses:
    def test_a_call(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, CALL)
        message, finish_reason = message_of(http)
        (call,) = message.pop("tool_calls")
        assert message == {"role": "assistant", "content": None, "refusal": None}
        assert call.pop("id").startswith("call-")
        assert call == {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
        assert finish_reason == "tool_calls"

    def test_text_and_several_calls(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, f"Let me see.\n{CALL}\n{TIME_CALL}")
        message, finish_reason = message_of(http)
        assert message["content"] == "Let me see.\n"
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time.now"]
        assert len({call["id"] for call in message["tool_calls"]}) == 2
        assert finish_reason == "tool_calls"

    @pytest.mark.parametrize("text", ["Hello", "a <tool_ca", ""])
    def test_no_call(self, http: httpx.Client, backend: FakeBackend, text: str) -> None:
        generate(backend, text)
        assert message_of(http) == ({"role": "assistant", "content": text, "refusal": None}, "stop")
        deltas, finish_reason = deltas_of(http)
        assert "".join(delta.get("content", "") for delta in deltas) == text
        assert finish_reason == "stop"

    def test_tags_in_a_prompt_call_nothing(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.model = replace(backend.model, max_model_len=4096)
        messages = [{"role": "user", "content": CALL}]  # which the backend echoes
        message, _ = message_of(http, messages=messages, tool_choice="none")
        assert message["content"] == f"[user]{CALL}[assistant]"
        assert "tool_calls" not in message

    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_a_stream_has_the_name_first_and_then_the_arguments(
        self, http: httpx.Client, backend: FakeBackend, size: int
    ) -> None:
        generate(backend, f"Hi\n{CALL}\n{TIME_CALL}")
        backend.ids_per_delta = size
        deltas, finish_reason = deltas_of(http)
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "Hi\n"
        calls: list[dict[str, Any]] = []
        for delta in deltas:
            for piece in delta.get("tool_calls", ()):
                if piece["index"] == len(calls):
                    assert set(piece) == {"index", "id", "type", "function"}
                    assert piece["type"] == "function"
                    calls.append(piece["function"])
                else:
                    assert set(piece) == {"index", "function"}
                    assert set(piece["function"]) == {"arguments"}
                    assert piece["index"] == len(calls) - 1
                    calls[-1]["arguments"] += piece["function"]["arguments"]
        assert calls == [{"name": "weather", "arguments": ARGUMENTS}, {"name": "time.now", "arguments": "{}"}]
        assert finish_reason == "tool_calls"

    def test_each_choice_has_its_own_calls(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, CALL)
        backend.outputs.append(backend.tokenizer.encode(f"Hi{TIME_CALL}"))
        chunks = events(chat(http, tools=TOOLS, n=2, stream=True))
        names: dict[int, list[str]] = {0: [], 1: []}
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            names[choice["index"]] += [
                c["function"]["name"] for c in choice["delta"].get("tool_calls", ()) if "id" in c
            ]
        assert names == {0: ["weather"], 1: ["time.now"]}

    @pytest.mark.parametrize("max_tokens", range(1, len(CALL.encode()) + 1))
    def test_a_call_that_is_cut_off_has_the_beginning_of_its_arguments(
        self, http: httpx.Client, backend: FakeBackend, max_tokens: int
    ) -> None:
        generate(backend, CALL)
        message, finish_reason = message_of(http, max_tokens=max_tokens)
        assert finish_reason == "length"
        for call in message.get("tool_calls", ()):
            assert ARGUMENTS.startswith(call["function"]["arguments"].rstrip("\ufffd"))
        assert not message["content"] or CALL.startswith(message["content"])

    def test_stop_strings_end_the_text_and_no_call(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, f"Hello{CALL}")
        assert message_of(http, stop=["rich", "city"])[1] == "tool_calls"
        message, finish_reason = message_of(http, stop=["rich", "ell"])
        assert (message["content"], finish_reason) == ("H", "stop")

    def test_a_stop_id_in_a_call_is_no_end_of_calls(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, CALL)
        message, finish_reason = message_of(http, stop_token_ids=backend.tokenizer.encode("Z"))
        assert finish_reason == "stop"
        assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "'

    @pytest.mark.parametrize("stream", [False, True])
    def test_tokens_of_calls_are_reported(self, http: httpx.Client, backend: FakeBackend, stream: bool) -> None:
        generate(backend, TIME_CALL)
        body = {"tools": TOOLS, "logprobs": True, "return_token_ids": True, "stream": stream}
        response = chat(http, **body)
        bodies = events(response) if stream else [response.json()]
        choices = [choice for body in bodies for choice in body["choices"]]
        ids = [token_id for choice in choices for token_id in choice.get("token_ids", ())]
        assert backend.tokenizer.decode(ids).startswith(TIME_CALL)

    def test_a_message_that_must_call_begins_without_content(self, http: httpx.Client, backend: FakeBackend) -> None:
        generate(backend, CALL)
        deltas, _ = deltas_of(http, tool_choice="required")
        assert deltas[0] == {"role": "assistant", "content": None}

    def test_the_official_client_reads_a_stream(self, client: openai.OpenAI, backend: FakeBackend) -> None:
        generate(backend, f"Hi{CALL}\n{TIME_CALL}")
        with client.chat.completions.stream(model="mpt-echo", messages=HI, tools=TOOLS) as stream:  # type: ignore[arg-type]
            final = stream.get_final_completion()
        message = final.choices[0].message
        assert message.content == "Hi"
        assert [call.function.arguments for call in message.tool_calls or ()] == [ARGUMENTS, "{}"]
        assert final.choices[0].finish_reason == "tool_calls"


class TestPrompts:
    def test_the_tools_reach_the_template(self, http: httpx.Client, backend: FakeBackend) -> None:
        message_of(http)
        assert backend.conversations[-1][1] == [WEATHER, TIME_DEFINITION]
        message_of(http, tool_choice={"type": "function", "function": {"name": "weather"}})
        assert backend.conversations[-1][1] == [WEATHER, TIME_DEFINITION]

    def test_without_a_choice_of_tools_there_are_none(self, http: httpx.Client, backend: FakeBackend) -> None:
        message_of(http, tool_choice="none")
        assert backend.conversations[-1][1] == ()
        assert backend.grammars == [None]

    def test_earlier_calls_and_results(self, http: httpx.Client, backend: FakeBackend) -> None:
        result = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "21"}]}
        message_of(http, messages=[*HI, EARLIER, result])
        assert backend.conversations[-1][0] == [
            *HI,
            {**EARLIER, "content": ""},
            {"role": "tool", "content": "21", "tool_call_id": "c1", "name": "f"},
        ]

    def test_tokenize_counts_tools(self, http: httpx.Client, backend: FakeBackend) -> None:
        assert http.post("/tokenize", json={"messages": HI, "tools": TOOLS}).status_code == 200
        assert backend.conversations[-1][1] == [WEATHER, TIME_DEFINITION]

    def test_unknown_members_of_tools_are_named(self, http: httpx.Client) -> None:
        function = {"name": "f", "returns": "x", "strict": True}
        response = chat(http, tools=[{"type": "function", "function": function, "cache": 1}])
        assert response.headers["x-mpt-ignored-fields"] == "tools[0].cache, tools[0].function.returns"

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"tools": TOOLS}, "tools"),
            ({"messages": [*HI, EARLIER, {"role": "tool", "tool_call_id": "c1", "content": ""}]}, "messages"),
        ],
    )
    def test_a_model_without_a_form_for_tools_says_so(
        self, http: httpx.Client, backend: FakeBackend, body: dict[str, Any], param: str
    ) -> None:
        backend.model = replace(backend.model, tools_refusal="its template is dolly")
        error = check_error(http.post(PATH, json={"messages": HI, **body}), 400, "unsupported_parameter")
        assert (error["param"], error["message"]) == (param, f"'{param}' cannot have tools: its template is dolly.")
        assert chat(http).status_code == 200


class TestGrammar:
    def test_its_parts(self, http: httpx.Client, backend: FakeBackend) -> None:
        message_of(http)
        assert grammar_of(backend) == {
            "content": True,
            "trigger": "<tool_call>",
            "tools": [
                {
                    "name": "tools[0].function.parameters",
                    "begin": '\n{"name": "weather", "arguments": ',
                    "schema": {**CITY, "additionalProperties": False},
                    "end": "}\n</tool_call>",
                },
                {
                    "name": "tools[1].function.parameters",
                    "begin": '\n{"name": "time.now", "arguments": ',
                    "schema": NOTHING,
                    "end": "}\n</tool_call>",
                },
            ],
            "separator": "\n",
            "at_most": 16,
        }

    @pytest.mark.parametrize(
        ("body", "content", "places", "at_most"),
        [
            ({"tool_choice": "auto"}, True, [0, 1], 16),
            ({"tool_choice": "auto", "parallel_tool_calls": False}, True, [0, 1], 1),
            ({"tool_choice": "required"}, False, [0, 1], 16),
            ({"tool_choice": {"type": "function", "function": {"name": "time.now"}}}, False, [1], 1),
            (
                {
                    "tool_choice": {
                        "type": "allowed_tools",
                        "allowed_tools": {"mode": "auto", "tools": [WEATHER_ONLY]},
                    }
                },
                True,
                [0],
                16,
            ),
            (
                {
                    "tool_choice": {
                        "type": "allowed_tools",
                        "allowed_tools": {"mode": "required", "tools": [WEATHER_ONLY, TIME]},
                    },
                    "parallel_tool_calls": None,
                },
                False,
                [0, 1],
                16,
            ),
            ({"response_format": {"type": "text"}}, True, [0, 1], 16),
            ({"response_format": {"type": "json_object"}}, {"type": "object"}, [0, 1], 16),
            ({"guided_json": {"type": "array"}}, {"type": "array"}, [0, 1], 16),
            ({"guided_json": {"type": "array"}, "tool_choice": "required"}, False, [0, 1], 16),
        ],
    )
    def test_choices(
        self,
        http: httpx.Client,
        backend: FakeBackend,
        body: dict[str, Any],
        content: Any,
        places: list[int],
        at_most: int,
    ) -> None:
        message_of(http, **body)
        check_choice(backend, content, places, at_most)

    @pytest.mark.parametrize("kind", [None, "object", ["object", "null"]])
    def test_arguments_are_objects_whatever_the_schema_says(
        self, http: httpx.Client, backend: FakeBackend, kind: Any
    ) -> None:
        parameters = {} if kind is None else {"type": kind}
        message_of(http, tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])
        assert grammar_of(backend)["tools"][0]["schema"] == {"type": "object"}

    def test_schemas_that_cannot_be_compiled_are_errors_of_the_tools(
        self, http: httpx.Client, backend: FakeBackend
    ) -> None:
        backend.refusal = RequestError("the tools cannot be used: tools[0].function.parameters: no")
        error = check_error(chat(http, tools=TOOLS), 400, "invalid_value")
        assert error["param"] == "tools"


def function(**members: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **members}}]}


def choice(value: Any) -> dict[str, Any]:
    return {"tools": TOOLS, "tool_choice": value}


def allowed(**members: Any) -> dict[str, Any]:
    return choice({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [WEATHER_ONLY], **members}})


def called(**members: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}, **members}
    return {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def tool_result(**members: Any) -> dict[str, Any]:
    return {"messages": [*HI, EARLIER, {"role": "tool", "content": "21", **members}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [TIME, WEATHER, TIME]}, "tools[2].function.name"),
        (function(name="a b"), "tools[0].function.name"),
        (function(name=""), "tools[0].function.name"),
        (function(name="x" * 65), "tools[0].function.name"),
        (function(name="a\n"), "tools[0].function.name"),
        (function(description=1), "tools[0].function.description"),
        (function(description="\ud800"), "tools[0].function.description"),
        (function(description="x" * 262_144), "tools"),
        (function(parameters="{}"), "tools[0].function.parameters"),
        (function(parameters={"type": "string"}), "tools[0].function.parameters.type"),
        (function(parameters={"type": ["null"]}), "tools[0].function.parameters.type"),
        (function(parameters={"title": "\ud800"}), "tools[0].function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": WEATHER_ONLY}, "tool_choice"),
        (choice("any"), "tool_choice"),
        (choice(1), "tool_choice"),
        (choice({}), "tool_choice.type"),
        (choice({"type": "custom", "custom": {"name": "x"}}), "tool_choice.type"),
        (choice({"type": "function"}), "tool_choice.function.name"),
        (choice({"type": "function", "function": {"name": 1}}), "tool_choice.function.name"),
        (choice({"type": "function", "function": {"name": "wind"}}), "tool_choice.function.name"),
        (choice({"type": "allowed_tools"}), "tool_choice.allowed_tools"),
        (allowed(mode="none"), "tool_choice.allowed_tools.mode"),
        (allowed(tools=[]), "tool_choice.allowed_tools.tools"),
        (allowed(tools=[1]), "tool_choice.allowed_tools.tools[0]"),
        (
            allowed(tools=[WEATHER_ONLY, {"type": "function", "function": {}}]),
            "tool_choice.allowed_tools.tools[1].function.name",
        ),
        (
            allowed(tools=[{"type": "function", "function": {"name": "wind"}}]),
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": TOOLS, "guided_regex": "a"}, "tools"),
        ({"tools": TOOLS, "ignore_eos": True}, "ignore_eos"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        (called(id=""), "messages[1].tool_calls[0].id"),
        (called(type="custom"), "messages[1].tool_calls[0].type"),
        (called(function={"name": "f"}), "messages[1].tool_calls[0].function.arguments"),
        (called(function={"name": "f", "arguments": {}}), "messages[1].tool_calls[0].function.arguments"),
        (called(function={"name": "a b", "arguments": ""}), "messages[1].tool_calls[0].function.name"),
        ({"messages": [*HI, {"role": "assistant", "content": None}]}, "messages[1].content"),
        (
            {"messages": [{"role": "user", "content": "", "tool_calls": EARLIER["tool_calls"]}]},
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "user", "content": "", "tool_call_id": "c1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "content": "", "function_call": {}}]}, "messages[0].function_call"),
        (tool_result(), "messages[2].tool_call_id"),
        (tool_result(tool_call_id="c2"), "messages[2].tool_call_id"),
        ({"messages": [*HI, EARLIER], "continue_final_message": True}, "continue_final_message"),
    ],
)
def test_mistakes_are_refused_by_name(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    content = json.dumps({"messages": HI, **body})
    response = http.post(PATH, content=content, headers={"content-type": "application/json"})
    assert check_error(response, 400)["param"] == param


def test_an_automatic_choice_needs_no_tools(http: httpx.Client, backend: FakeBackend) -> None:
    assert chat(http, tool_choice="auto").status_code == 200
    assert chat(http, tools=[], tool_choice="none").status_code == 200
    assert backend.grammars == [None, None]
