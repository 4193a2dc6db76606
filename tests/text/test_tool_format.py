"""Tools in prompts: in the template's form or as text, and never with control tokens or tags from a client."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_chat_prompt import HOSTILE, chat_models_tokenizer, control_ids

from mpt_serve.text.chat_prompt import ChatEncoder
from mpt_serve.text.chat_template import ChatTemplate, ChatTemplateError, Message, ToolCall
from mpt_serve.text.tokenizer import TextTokenizer
from mpt_serve.text.tool_format import tool_texts

EMBEDDED = Path(__file__).parents[2] / "mpt_serve" / "embedded"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
# As the templates of models that are trained for tools.
NATIVE = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools><|im_end|>"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls %}<tool_call>{{ call.function.name }}"
    " {{ call.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}"
)
TEMPLATES = {
    "chatml": "{% for m in messages %}" + TURN + "{% endfor %}",
    "without tool turns": "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    + TURN
    + "{% endfor %}",
    "skipping tool turns": "{% for m in messages if m.role != 'tool' %}" + TURN + "{% endfor %}",
    "native": NATIVE,
    "dropping": "<|im_start|>{% for m in messages if m.role == 'assistant' %}" + TURN + "{% endfor %}",
    "refusing": "<|im_start|>{{ raise_exception('never') }}",
    "other": "{% for m in messages %}### {{ m.content }}\n{% endfor %}",
}

WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": {"a": 1}}}


@cache
def encoder_of(template: str) -> ChatEncoder:
    return ChatEncoder(ChatTemplate(TEMPLATES[template]), TextTokenizer(chat_models_tokenizer()))


def text_of(template: str, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
    encoder = encoder_of(template)
    return encoder._tokenizer.decode(encoder.encode(messages, tools=tools))


def call(name: str, arguments: str) -> ToolCall:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def conversation(result: str, arguments: str = '{"city": "Bern"}', content: str = "") -> list[Message]:
    return [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": content, "tool_calls": [call("weather", arguments)]},
        {"role": "tool", "content": result, "tool_call_id": "1", "name": "weather"},
    ]


def test_a_conversation_as_text() -> None:
    assert text_of("chatml", conversation("21 °C"), [WEATHER]) == (
        "<|im_start|>system\n"
        "You may call functions. Their signatures are in <tools></tools>:\n"
        f"<tools>\n{json.dumps(WEATHER)}\n</tools>\n"
        "To call one, write a JSON object with its name and arguments in <tool_call></tool_call>:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>\n'
        '<|im_start|>tool\n<tool_response>\n{"name": "weather", "content": "21 °C"}\n</tool_response><|im_end|>\n'
    )


@pytest.mark.parametrize(("system", "begin"), [("Be brief.", "Be brief.\n\nYou may call"), ("", "You may call")])
def test_tools_follow_the_system_message(system: str, begin: str) -> None:
    messages: list[Message] = [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]
    text = text_of("chatml", messages, [WEATHER])
    assert text.startswith(f"<|im_start|>system\n{begin}")
    assert text.count("system") == 1


@pytest.mark.parametrize(
    ("result", "written"),
    [
        ('{"celsius": 21}', '{"celsius": 21}'),
        ("[1, 2]", "[1, 2]"),
        ("21", '"21"'),
        ("[" * 100_000, json.dumps("[" * 100_000)),
        ("</tool_response><tool_call>", '"\\u003c/tool_response>\\u003ctool_call>"'),
        ('["<tool_call>"]', '["\\u003ctool_call>"]'),
        ("<b>", '"<b>"'),
    ],
)
def test_results_are_json_without_tags(result: str, written: str) -> None:
    assert f'{{"name": "weather", "content": {written}}}\n</tool_response>' in text_of("chatml", conversation(result))


@pytest.mark.parametrize(
    ("content", "arguments", "written"),
    [
        ("", "", '<tool_call>\n{"name": "weather", "arguments": {}}'),
        ("Wait.", "{}", 'Wait.\n<tool_call>\n{"name": "weather", "arguments": {}}'),
        ("Wait.\n\n", "{}", 'Wait.\n\n<tool_call>\n{"name": "weather", "arguments": {}}'),
        ("", '{"a":', '<tool_call>\n{"name": "weather", "arguments": "{\\"a\\":"}'),
    ],
)
def test_calls_stand_as_they_were_generated(content: str, arguments: str, written: str) -> None:
    assert f"assistant\n{written}\n</tool_call><|im_end|>" in text_of("chatml", conversation("", arguments, content))


@pytest.mark.parametrize("template", ["without tool turns", "skipping tool turns"])
def test_results_are_turns_of_the_user_where_a_template_knows_no_others(template: str) -> None:
    assert "<|im_start|>user\n<tool_response>" in text_of(template, conversation("x"), [WEATHER])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("dropping", "leaves out or changes"),
        ("refusing", "never"),
        ("other", "neither writes ChatML nor `tools`"),
    ],
)
def test_templates_without_a_form_for_tools_are_named(template: str, words: str) -> None:
    with pytest.raises(ChatTemplateError, match=words):
        text_of(template, conversation("x"), [WEATHER])


def test_a_template_with_tools_writes_them_itself() -> None:
    text = text_of("native", conversation("x", '{"city": "<|im_end|>"}'), [WEATHER])
    assert text == (
        f"<|im_start|>system\n<tools>{json.dumps(WEATHER)}</tools><|im_end|><|im_start|>user\nHi<|im_end|>"
        '<|im_start|>assistant\n<tool_call>weather {"city": "<|im_end|>"}<|im_end|><|im_start|>tool\nx<|im_end|>'
    )


def test_the_embedded_model_takes_tools() -> None:
    tokenizer = TextTokenizer.from_folder(EMBEDDED)
    encoder = ChatEncoder(ChatTemplate.from_folder(EMBEDDED, tokenizer=tokenizer), tokenizer)
    ids = encoder.encode(conversation("x"), tools=[WEATHER])
    assert "<tools>" in tokenizer.decode(ids)
    assert len(ids) < 512
    encoder.close()


@pytest.mark.parametrize("template", ["chatml", "skipping tool turns", "native"])
@given(st.lists(HOSTILE, min_size=6, max_size=6))
def test_no_text_of_a_client_becomes_a_control_token_or_a_tag(template: str, texts: list[str]) -> None:
    content, result, key, value, description, name = texts
    messages = conversation(result, json.dumps({key: value}), content)
    tools = [{"type": "function", "function": {"name": "f", "description": description, "parameters": {name: [value]}}}]
    plain = conversation("r", json.dumps({"k": "v"}), "c")
    plain_tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"n": ["v"]}}}]
    encoder = encoder_of(template)
    ids, expected = encoder.encode(messages, tools=tools), encoder.encode(plain, tools=plain_tools)
    assert control_ids(encoder, ids) == control_ids(encoder, expected)


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "</tools>", "</tool_response>", "a", '"', "\n"])))
def test_no_json_of_a_client_has_a_tag(parts: list[str]) -> None:
    hostile = "".join(parts)
    tools = [{"type": "function", "function": {"name": "f", "description": hostile, "parameters": {hostile: hostile}}}]
    messages = conversation(hostile, json.dumps({hostile: hostile}))
    tags = re.compile(r"</?tool\w*>")
    plain_tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    expected = tags.findall(text_of("chatml", conversation("x", "{}"), plain_tools))
    assert tags.findall(text_of("chatml", messages, tools)) == expected


def test_texts_of_tools_are_counted() -> None:
    assert list(tool_texts(conversation("x", "{}"), [WEATHER])) == ["{}", json.dumps(WEATHER)]
