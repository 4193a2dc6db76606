"""What the settings of the page make of requests: parameters, structured outputs, tools, tokens, and code."""

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
from playground_page import expect, last_text, send, sent_by

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

CHAT = "v1/chat/completions"
STREAM = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def body_of(page: Any, text: str = "Hello") -> Any:
    return sent_by(page, CHAT, lambda: send(page, text))


def test_what_is_set_is_sent_and_nothing_else(chat: Any) -> None:
    message = {"role": "user", "content": "Hello"}
    assert body_of(chat) == {"model": "embedded", "messages": [message], "temperature": 0, "max_tokens": 256, **STREAM}
    chat.get_by_role("button", name="New chat").click()
    chat.get_by_text("System prompt").click()
    chat.get_by_label("System prompt", exact=True).fill("You are brief.")
    values = {
        "Temperature": "0.5",
        "Top p": "0.9",
        "Top k": "20",
        "Min p": "0.05",
        "Max tokens": "8",
        "Seed": "3",
        "Stop strings": "\\n\\n\nEND",
        "Repetition penalty": "1.1",
        "Presence penalty": "0.2",
        "Frequency penalty": "-0.1",
    }
    for label, value in values.items():
        chat.get_by_label(label, exact=True).fill(value)
    assert body_of(chat) == {
        "model": "embedded",
        "messages": [{"role": "system", "content": "You are brief."}, message],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "max_tokens": 8,
        "seed": 3,
        "stop": ["\n\n", "END"],
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.1,
        **STREAM,
    }
    chat.reload()
    expect(chat.get_by_label("Top k")).to_have_value("20")
    chat.get_by_role("button", name="Reset").click()
    expect(chat.get_by_label("Top k")).to_have_value("")
    expect(chat.get_by_label("Temperature", exact=True)).to_have_value("0.7")


def test_slider_and_field_are_one_value(chat: Any) -> None:
    slider = chat.get_by_label("Temperature, slider")
    slider.focus()
    chat.keyboard.press("ArrowRight")
    expect(chat.get_by_label("Temperature", exact=True)).to_have_value("0.05")
    chat.get_by_label("Temperature", exact=True).fill("1.5")
    expect(slider).to_have_value("1.5")


@pytest.mark.parametrize(
    ("label", "value", "problem"),
    [
        ("Temperature", "9", "Temperature takes a number from 0 to 2."),
        ("Top k", "1.5", "Top k takes an integer from -1."),
        ("Seed", "x", "Seed takes an integer."),
    ],
)
def test_a_wrong_value_is_named_at_its_field_and_not_sent(chat: Any, label: str, value: str, problem: str) -> None:
    requests: list[str] = []
    chat.on("request", lambda request: requests.append(request.url))
    chat.get_by_label(label, exact=True).fill(value)
    chat.get_by_label("Message", exact=True).fill("Hello")
    chat.keyboard.press("Control+Enter")
    expect(chat.get_by_text(problem).first).to_be_visible()
    expect(chat.get_by_label(label, exact=True)).to_be_focused()
    assert chat.get_by_label(label, exact=True).get_attribute("aria-invalid") == "true"
    assert not [url for url in requests if CHAT in url]
    chat.get_by_label(label, exact=True).fill("1")
    send(chat, "Hello")
    assert last_text(chat) != ""


def test_structured_outputs(chat: Any) -> None:
    chat.get_by_text("Structured output").click()
    kind = chat.get_by_label("The output is")
    kind.select_option("choice")
    chat.get_by_label("Choices, one in each line").fill("yes\nno")
    assert body_of(chat)["structured_outputs"] == {"choice": ["yes", "no"]}
    assert last_text(chat) in ("yes", "no")
    kind.select_option("json_schema")
    body = body_of(chat, "Anna is 34 years old.")
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["name", "age"]
    assert isinstance(json.loads(last_text(chat))["age"], int)
    kind.select_option("regex")
    assert body_of(chat)["structured_outputs"] == {"regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"}
    assert last_text(chat).count("-") == 2
    kind.select_option("grammar")
    body_of(chat)
    assert last_text(chat).split()[0] in ("Hello", "Goodbye")
    kind.select_option("json_object")
    assert body_of(chat)["response_format"] == {"type": "json_object"}
    kind.select_option("json_schema")
    chat.get_by_label("Schema", exact=True).fill("{")
    chat.get_by_label("Message", exact=True).fill("Hello")
    chat.keyboard.press("Control+Enter")
    expect(chat.locator("#problem-json_schema")).to_contain_text("The schema is not valid JSON")


def test_tool_calls_are_shown_and_results_go_back(chat: Any) -> None:
    chat.get_by_text("Tools", exact=True).click()
    chat.get_by_label("Send tools with chat messages").check()
    chat.get_by_label("Choice: auto, required, none, or a name").fill("weather")
    body = body_of(chat, "How warm is it in Bern?")
    assert body["tools"][0]["function"]["name"] == "weather"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    call = chat.locator(".call")
    expect(call.locator(".call-name")).to_have_text("calls weather")
    assert set(json.loads(call.locator("pre").inner_text())) <= {"city", "unit"}
    chat.get_by_label("Choice: auto, required, none, or a name").fill("none")
    chat.get_by_label("Result of weather").fill('{"celsius": 21}')
    again = sent_by(chat, CHAT, lambda: chat.get_by_role("button", name="Send result").click())
    assert [message["role"] for message in again["messages"]] == ["user", "assistant", "tool"]
    _, called, result = again["messages"]
    assert result == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": '{"celsius": 21}'}
    chat.locator("#chat-send").wait_for()
    expect(chat.locator(".turn-tool .role")).to_have_text("Result of weather")
    expect(chat.locator(".turn-assistant")).to_have_count(2)
    assert not chat.get_by_label("Result of weather").is_visible()


def test_tokens_show_their_alternatives(chat: Any) -> None:
    chat.get_by_text("Tokens and probabilities").click()
    chat.get_by_label("Request the tokens' probabilities").check()
    body = body_of(chat, "What is the capital of France?")
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
    text = last_text(chat)
    chat.get_by_role("button", name="Tokens", exact=True).click()
    tokens = chat.locator(".token")
    assert "".join(tokens.all_text_contents()) == text
    tokens.first.hover()
    alternatives = chat.get_by_role("tooltip")
    expect(alternatives.locator("tbody tr")).to_have_count(5)
    expect(alternatives.locator(".chosen code")).to_have_text(tokens.first.inner_text())
    tokens.first.focus()
    chat.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    assert tokens.nth(1).get_attribute("aria-describedby") == alternatives.get_attribute("id")
    chat.keyboard.press("Escape")
    expect(alternatives).to_be_hidden()
    chat.get_by_role("button", name="Tokens", exact=True).click()
    assert last_text(chat) == text


def code_of(page: Any) -> tuple[str, str]:
    page.locator("#chat-code").click()
    both = page.locator("#code-curl").text_content(), page.locator("#code-python").text_content()
    page.keyboard.press("Escape")
    return both


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_code_sends_the_same_request(chat: Any) -> None:
    send(chat, "What's the capital of France?")
    chat.get_by_label("Top k").fill("5")
    chat.get_by_label("Message", exact=True).fill('Say "it\'s" and\na\\b')
    curl, python = code_of(chat)
    assert "Paris" in python
    assert 'api_key="unused"' in python
    streamed = run(["bash", "-c", curl])
    assert streamed.endswith("data: [DONE]\n\n")
    pieces = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)
    assert run([sys.executable, "-c", python]) == text != ""
    chat.get_by_text("Tokens and probabilities").click()
    chat.get_by_label("Request the tokens' probabilities").check()
    assert json.loads(run([sys.executable, "-c", code_of(chat)[1]]))["logprobs"]["content"]
