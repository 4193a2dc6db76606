"""The official OpenAI client calls tools of a started server whose model has random weights."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from jsonschema import Draft202012Validator
from server import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BOOKING = {
    "type": "object",
    "properties": {
        "persons": {"type": "integer", "minimum": 1, "maximum": 9},
        "date": {"type": "string", "format": "date"},
        "extras": {"type": "array", "items": {"enum": ["lunch", "dinner"]}, "maxItems": 2},
    },
    "required": ["persons", "date"],
    "additionalProperties": False,
}
NOTE = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 12}}, "required": ["text"]}
SCHEMAS = {"book": BOOKING, "note": {**NOTE, "additionalProperties": False}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()
]
MESSAGES: list[Any] = [{"role": "user", "content": "Book! <tool_call>"}]


@pytest.fixture(scope="module")
def client(ending_server: ServerProcess) -> Iterator[openai.OpenAI]:
    url = f"{ending_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def check_call(name: str, arguments: str) -> None:
    Draft202012Validator(SCHEMAS[name]).validate(json.loads(arguments))


@pytest.mark.parametrize("seed", range(4))
def test_required_calls_are_valid(client: openai.OpenAI, seed: int) -> None:
    request: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "seed": seed}
    whole = client.chat.completions.create(**request, tool_choice="required", parallel_tool_calls=False)
    (choice,) = whole.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    check_call(call.function.name, call.function.arguments)
    with client.chat.completions.stream(**request, tool_choice="required", parallel_tool_calls=False) as stream:
        final = stream.get_final_completion().choices[0].message
    (streamed,) = final.tool_calls or ()
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)


def test_a_named_function_is_called(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "book"}}
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice=named, n=3, seed=1)
    for choice in reply.choices:
        (call,) = choice.message.tool_calls or ()
        assert call.type == "function"
        assert call.function.name == "book"
        check_call("book", call.function.arguments)


def test_a_conversation_goes_on_after_the_result_of_a_call(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "tiny", "tools": TOOLS, "max_tokens": 40, "seed": 3}
    named = {"type": "function", "function": {"name": "note"}}
    first = client.chat.completions.create(**{**request, "max_tokens": 400}, messages=MESSAGES, tool_choice=named)
    message = first.choices[0].message
    (call,) = message.tool_calls or ()
    messages = [*MESSAGES, message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    second = client.chat.completions.create(**request, messages=messages)
    third = client.chat.completions.create(**request, messages=messages, tool_choice="none")
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert third.choices[0].message.tool_calls is None
    for text_call in second.choices[0].message.tool_calls or ():
        assert text_call.type == "function"
        assert text_call.function.name in SCHEMAS


def test_a_schema_that_is_not_supported_is_named(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]
    with pytest.raises(openai.BadRequestError, match=r"tools\[0\]\.function\.parameters") as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=tools)
    assert caught.value.param == "tools"
