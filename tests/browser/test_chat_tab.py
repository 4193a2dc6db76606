"""Conversations in the page: streaming, stopping, branches, and what is sent."""

import json
import re
from typing import Any

import pytest
from playground_page import OpenPage, expect, last_text, send, sent_by, stream, wait_for_model
from server import ServerProcess, wait_idle

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

CHAT = "v1/chat/completions"
CAPITAL = "What is the capital of France?"


def delta(**fields: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": fields, "logprobs": None, "finish_reason": None}]})


def test_a_response_streams_and_its_speed_is_shown(chat: Any) -> None:
    send(chat, "Tell me a story about a fox.")
    assert len(last_text(chat)) > 40
    summary = chat.locator(".turn-assistant .summary").inner_text()
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · first token after \d+ ms", summary)
    assert re.match(r"\d+ of 1,024 tokens of context used", chat.locator("#context").inner_text())
    expect(chat.locator("#announcer")).to_contain_text("The response is complete")


def test_escape_stops_and_what_came_stays(chat: Any, chat_server: ServerProcess) -> None:
    chat.get_by_text("Structured output").click()
    chat.get_by_label("The output is").select_option("regex")
    chat.get_by_label("Expression").fill("[a-z ]{4000}")
    chat.get_by_label("Max tokens").fill("1000")
    network = chat.context.new_cdp_session(chat)
    slow = {"offline": False, "latency": 0, "downloadThroughput": 20_000, "uploadThroughput": -1}
    network.send("Network.emulateNetworkConditions", slow)  # or a fast machine might be done before the key
    chat.get_by_label("Message", exact=True).fill("Hello")
    chat.keyboard.press("Control+Enter")
    expect(chat.locator(".turn-assistant .text")).to_contain_text(re.compile("[a-z]"))
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()
    chat.keyboard.press("Escape")
    expect(chat.locator(".turn-assistant .summary")).to_contain_text("stopped")
    assert last_text(chat) != ""
    wait_idle(chat_server.url)


def test_the_button_stops_a_request_that_has_no_response_yet(chat: Any) -> None:
    chat.route(f"**/{CHAT}", lambda route: None)  # it is never continued
    chat.get_by_label("Message", exact=True).fill("Hello")
    chat.get_by_role("button", name="Send", exact=True).click()
    with chat.expect_event("requestfailed"):
        chat.get_by_role("button", name="Stop").click()
    expect(chat.locator(".turn-assistant .summary")).to_have_text("stopped")
    expect(chat.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_regenerated_responses_are_alternatives(chat: Any) -> None:
    send(chat, CAPITAL)
    first = last_text(chat)
    assert "Paris" in first
    chat.get_by_label("Temperature", exact=True).fill("2")
    chat.get_by_label("Seed").fill("7")
    chat.get_by_role("button", name="Regenerate").click()
    expect(chat.locator(".branches")).to_have_text("‹2 / 2›")
    chat.locator("#chat-send").wait_for()
    assert last_text(chat) != first
    chat.get_by_role("button", name="Previous alternative").click()
    assert last_text(chat) == first
    expect(chat.get_by_role("button", name="Next alternative")).to_be_focused()
    chat.keyboard.press("Enter")
    assert last_text(chat) != first


def test_an_edited_message_begins_a_branch_and_the_old_one_stays(chat: Any) -> None:
    send(chat, CAPITAL)
    send(chat, "Thank you!")
    chat.locator(".turn-user").first.get_by_role("button", name="Edit").click()
    chat.get_by_label("Edited text").fill("What is the capital of Italy?")
    body = sent_by(chat, CHAT, lambda: chat.keyboard.press("Control+Enter"))
    assert body["messages"] == [{"role": "user", "content": "What is the capital of Italy?"}]
    chat.locator("#chat-send").wait_for()
    assert "Rome" in last_text(chat)
    expect(chat.locator(".turn")).to_have_count(2)
    chat.get_by_role("button", name="Previous alternative").click()
    expect(chat.locator(".turn")).to_have_count(4)
    expect(chat.locator(".turn-user .text").first).to_have_text(CAPITAL)


def test_an_edited_response_is_what_the_model_reads_next(chat: Any) -> None:
    send(chat, CAPITAL)
    chat.locator(".turn-assistant").get_by_role("button", name="Edit").click()
    chat.get_by_label("Edited text").fill("Lyon.")
    chat.get_by_role("button", name="Keep as an alternative").click()
    assert last_text(chat) == "Lyon."
    body = sent_by(chat, CHAT, lambda: send(chat, "Thank you!"))
    assert [message["content"] for message in body["messages"]] == [CAPITAL, "Lyon.", "Thank you!"]


def test_another_token_begins_a_branch(chat: Any) -> None:
    chat.get_by_text("Tokens and probabilities").click()
    chat.get_by_label("Request the tokens' probabilities").check()
    send(chat, "Tell me a story about a fox.")
    chat.get_by_role("button", name="Tokens", exact=True).click()
    first = chat.locator(".token").first
    begun = first.text_content()
    first.focus()
    chat.keyboard.press("Enter")
    others = chat.get_by_role("group", name=f"Instead of {begun}").get_by_role("button")
    expect(others.first).to_be_focused()
    other = others.first.text_content().split("  ")[0]
    assert other != begun
    body = sent_by(chat, CHAT, lambda: chat.keyboard.press("Enter"))
    assert body["messages"][-1] == {"role": "assistant", "content": other}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    expect(chat.locator(".branches")).to_have_text("‹2 / 2›")
    chat.locator("#chat-send").wait_for()
    text = last_text(chat)
    assert text.startswith(other)
    assert len(text) > len(other) + 20
    chat.get_by_role("button", name="Tokens", exact=True).click()
    assert "".join(chat.locator(".token").all_text_contents()) == text


def test_a_response_that_was_cut_off_goes_on(chat: Any) -> None:
    chat.get_by_label("Max tokens").fill("5")
    send(chat, "Tell me a story about a fox.")
    cut = last_text(chat)
    expect(chat.locator(".turn-assistant .summary")).to_contain_text("ended at the token limit")
    body = sent_by(chat, CHAT, lambda: chat.get_by_role("button", name="Continue").click())
    assert body["messages"][-1]["role"] == "assistant"
    assert body["messages"][-1]["content"].strip() == cut.strip()
    expect(chat.locator(".branches")).to_have_text("‹2 / 2›")
    chat.locator("#chat-send").wait_for()
    assert last_text(chat).startswith(cut.strip())
    chat.get_by_text("Structured output").click()
    chat.get_by_label("The output is").select_option("json_object")
    chat.get_by_role("button", name="Continue").click()
    expect(chat.locator("#problem-structure")).to_contain_text("cannot go on from a beginning")


def test_escape_leaves_an_edit_as_it_was(chat: Any) -> None:
    send(chat, CAPITAL)
    chat.locator(".turn-user").get_by_role("button", name="Edit").click()
    chat.get_by_label("Edited text").fill("Something else")
    chat.keyboard.press("Escape")
    expect(chat.locator(".turn-user .text")).to_have_text(CAPITAL)
    assert chat.locator(".branches").count() == 0


def test_a_reload_keeps_the_conversation_of_the_tab(chat: Any) -> None:
    send(chat, CAPITAL)
    text = last_text(chat)
    chat.reload()
    wait_for_model(chat)
    assert last_text(chat) == text
    chat.get_by_role("button", name="New chat").click()
    expect(chat.locator(".turn")).to_have_count(0)
    expect(chat.get_by_role("button", name="Tell me a story about a fox.")).to_be_visible()


def test_an_example_fills_the_message(chat: Any) -> None:
    chat.get_by_role("button", name="Translate to French: Good morning!").click()
    expect(chat.get_by_label("Message", exact=True)).to_have_value("Translate to French: Good morning!")
    expect(chat.get_by_label("Message", exact=True)).to_be_focused()
    assert chat.locator("#chat-scroll").evaluate("element => element.scrollTop") == 0
    headings = chat.locator("#chat-start h3").all_inner_texts()
    assert headings == ["Understanding", "Generation", "Translation", "Summary", "Question answering", "Code"]


def test_output_is_text_whatever_it_contains(chat: Any) -> None:
    hostile = (
        "<img src=x onerror=alert(1)> <script>alert(1)</script>\n\n"
        "[a](javascript:alert(1)) ![b](https://example.invalid/b.png) **bold** `<b>`\n\n"
        "```html\n<iframe src='/'></iframe>\n```\n\n- one\n- two\n  1. three\n\n| a | b |\n|---|---|\n| 1 | <i>2</i> |"
    )
    chat.route(f"**/{CHAT}", lambda route: route.fulfill(**stream(delta(content=hostile))))
    send(chat, "Hello")
    text = chat.locator(".turn-assistant .text")
    for name in ("img", "script", "iframe", "i", "b"):
        assert text.locator(name).count() == 0
    assert "<img src=x onerror=alert(1)> <script>alert(1)</script>" in text.inner_text()
    assert "[a](javascript:alert(1))" in text.inner_text()
    links = [link.get_attribute("href") for link in text.locator("a").all()]
    assert links == ["https://example.invalid/b.png"]
    assert text.locator("a").get_attribute("rel") == "noopener noreferrer nofollow"
    assert text.locator("strong").inner_text() == "bold"
    assert text.locator("pre").inner_text() == "<iframe src='/'></iframe>"
    assert text.locator("ul > li > ol > li").inner_text() == "three"
    assert text.locator("td").all_inner_texts() == ["1", "<i>2</i>"]


def test_an_error_is_shown_and_can_be_tried_again(open_page: OpenPage, chat_server: ServerProcess) -> None:
    page = open_page(chat_server.url, expected=("400 (Bad Request)",))
    wait_for_model(page)
    page.get_by_label("Max tokens").fill("5000")
    send(page, "Hello")
    expect(page.locator(".turn-assistant .problem")).to_contain_text("maximum context length is 1024 tokens")
    page.get_by_label("Max tokens").fill("5")
    body = sent_by(page, CHAT, lambda: send(page, "Hi"))
    assert [message["content"] for message in body["messages"]] == ["Hello", "Hi"]
    page.get_by_role("button", name="Regenerate").first.click()
    expect(page.locator(".turn-assistant .summary")).to_contain_text("5 tokens")
    assert not page.locator(".turn-assistant .problem").is_visible()


def test_a_stream_that_ends_early_is_an_error(chat: Any) -> None:
    body = f"data: {delta(content='Once upon')}\n\n"
    chat.route(f"**/{CHAT}", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body))
    send(chat, "Hello")
    assert last_text(chat) == "Once upon"
    expect(chat.locator(".turn-assistant .problem")).to_have_text("The connection ended before the output did.")
