"""The page as a whole: other tabs, keys of the keyboard and of the API, themes, phones, loading, accessibility."""

import json
from typing import Any

import httpx
import pytest
from conftest import AXE
from playground_page import KEY, OpenPage, expect, last_text, send, sent_by, wait_for_model
from server import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

LOADING = {"error": {"message": "The model is loading.", "type": "server_error", "param": None, "code": "loading"}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def test_instruct_continues_texts(chat: Any) -> None:
    chat.get_by_role("tab", name="Instruct").click()
    prompt = chat.get_by_label("Prompt", exact=True)
    prompt.fill("Once upon a time")
    chat.get_by_label("Max tokens").fill("6")
    body = sent_by(chat, "v1/completions", lambda: chat.keyboard.press("Control+Enter"))
    assert (body["prompt"], body["max_tokens"]) == ("Once upon a time", 6)
    completion = chat.locator("#completion .text")
    expect(chat.locator("#completion .summary")).to_contain_text("ended at the token limit")
    assert completion.inner_text().startswith("Once upon a time ")
    chat.get_by_role("button", name="Regenerate").click()
    expect(chat.locator("#completion .branches")).to_have_text("‹2 / 2›")
    chat.locator("#instruct-send").wait_for()
    second = completion.inner_text()
    body = sent_by(chat, "v1/completions", lambda: chat.get_by_role("button", name="Continue").click())
    assert body["prompt"] == second
    expect(chat.locator("#completion .branches")).to_have_text("‹3 / 3›")
    chat.locator("#instruct-send").wait_for()
    assert completion.inner_text().startswith(second)
    assert len(completion.inner_text()) > len(second)
    assert prompt.input_value() == "Once upon a time"
    prompt.fill("Name a colour.")
    chat.get_by_label("Format").select_option("dolly")
    body = sent_by(chat, "v1/completions", lambda: chat.get_by_role("button", name="Generate").click())
    assert body["prompt"].endswith("### Instruction:\nName a colour.\n\n### Response:\n")


@pytest.mark.parametrize(("fragment", "name"), [("#instruct", "Instruct"), ("#compare", "Compare"), ("#x", "Chat")])
def test_a_link_names_a_tab(chat: Any, fragment: str, name: str) -> None:
    chat.evaluate("fragment => { location.hash = fragment; }", fragment)
    chat.reload()
    expect(chat.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def test_instruct_shows_tokens_too(chat: Any) -> None:
    chat.get_by_text("Tokens and probabilities").click()
    chat.get_by_label("Request the tokens' probabilities").check()
    chat.get_by_role("tab", name="Instruct").click()
    chat.get_by_label("Prompt", exact=True).fill("Once upon a time")
    chat.get_by_label("Max tokens").fill("6")
    chat.keyboard.press("Control+Enter")
    chat.get_by_role("button", name="Tokens", exact=True).click()
    expect(chat.locator("#completion .token")).to_have_count(6)
    chat.locator("#completion .token").first.hover()
    assert chat.get_by_role("tooltip").locator("tbody tr").count() in (5, 6)


def test_two_settings_side_by_side(chat: Any) -> None:
    chat.get_by_role("tab", name="Compare").click()
    chat.get_by_role("radio", name="Settings B").check()
    chat.get_by_label("Max tokens").fill("4")
    chat.get_by_label("One prompt, two settings").fill("What is the capital of France?")
    sent: list[Any] = []
    chat.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    chat.keyboard.press("Control+Enter")
    columns = chat.locator(".column")
    expect(columns.nth(0).locator(".summary")).to_contain_text("first token after")
    expect(columns.nth(1).locator(".summary")).to_contain_text("4 tokens")
    expect(chat.get_by_role("button", name="Run both")).to_be_visible()
    assert [body["max_tokens"] for body in sent] == [256, 4]
    assert columns.locator(".differences li").all_inner_texts() == ["max tokens 256", "max tokens 4"]
    chat.locator("#compare-code").click()
    assert '"max_tokens": 4' in chat.locator("#code-curl").text_content()
    chat.keyboard.press("Escape")
    first, second = (column.locator(".text").inner_text() for column in columns.all())
    assert first.startswith(second.strip())
    chat.get_by_role("tab", name="Chat").click()
    expect(chat.get_by_label("Max tokens")).to_have_value("256")


def test_everything_is_reached_by_keyboard_and_the_focus_is_seen(chat: Any) -> None:
    chat.reload()
    wait_for_model(chat)
    chat.keyboard.press("Tab")
    expect(chat.get_by_role("link", name="Skip to the conversation")).to_be_focused()
    seen = []
    for _ in range(12):
        chat.keyboard.press("Tab")
        seen.append(chat.evaluate("document.activeElement.id || document.activeElement.textContent"))
        outline = chat.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", seen
    assert seen[:4] == ["tab-chat", "theme", "API", "toggle-settings"]
    chat.get_by_role("tab", name="Chat").focus()
    chat.keyboard.press("ArrowRight")
    expect(chat.get_by_role("tab", name="Instruct")).to_be_focused()
    expect(chat.get_by_label("Prompt", exact=True)).to_be_visible()
    chat.keyboard.press("Home")
    expect(chat.get_by_label("Message", exact=True)).to_be_visible()


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_themes(open_page: OpenPage, chat_server: ServerProcess) -> None:
    light = open_page(chat_server.url, color_scheme="light")
    dark = open_page(chat_server.url, color_scheme="dark")
    paper, night = background(light), background(dark)
    assert paper != night
    light.get_by_role("button", name="Theme: auto").click()
    light.get_by_role("button", name="Theme: light").click()
    assert background(light) == night
    light.reload()
    expect(light.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert background(light) == night
    dark.get_by_role("button", name="Theme: auto").click()
    assert background(dark) == paper


def test_a_phone_needs_no_sideways_scrolling(open_page: OpenPage, chat_server: ServerProcess) -> None:
    page = open_page(chat_server.url, **PHONE)
    wait_for_model(page)
    width = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    expect(page.get_by_label("Temperature", exact=True)).to_be_hidden()
    for tab in ("Instruct", "Compare", "Chat"):
        page.get_by_role("tab", name=tab).tap()
        assert page.evaluate(width), tab
    page.get_by_role("button", name="Settings").tap()
    page.get_by_label("Max tokens").fill("20")
    assert page.evaluate(width)
    page.keyboard.press("Escape")
    expect(page.get_by_label("Max tokens")).to_be_hidden()
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    page.get_by_label("Message", exact=True).fill("Write a Python function that reverses a list.")
    page.get_by_role("button", name="Send", exact=True).tap()
    page.locator("#chat-send").wait_for()
    assert last_text(page) != ""
    assert page.evaluate(width)


def test_it_waits_for_a_model_that_loads(open_page: OpenPage, chat_server: ServerProcess) -> None:
    page = open_page(chat_server.url, expected=("503 (Service Unavailable)",))
    page.route("**/ready", lambda route: route.fulfill(status=503, json=LOADING))
    page.reload()
    expect(page.get_by_text("The model is loading")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_be_visible()
    page.get_by_label("Message", exact=True).fill("What is the capital of France?")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    page.unroute("**/ready")
    wait_for_model(page)
    expect(page.get_by_text("The model is loading")).to_be_hidden()
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.press("Control+Enter")
    page.locator("#chat-send").wait_for()
    assert "Paris" in last_text(page)


def test_a_server_that_needs_a_key_and_takes_no_conversations(open_page: OpenPage, guarded_url: str) -> None:
    assert httpx.get(guarded_url).headers["location"] == "/mpt/"
    page = open_page(guarded_url, expected=("401 (Unauthorized)", "400 (Bad Request)"))
    dialog = page.get_by_role("dialog", name="This server needs an API key")
    expect(dialog).to_be_visible()
    dialog.get_by_label("API key").fill("sk-wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The API key is not valid.")
    dialog.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    wait_for_model(page)
    expect(dialog).to_be_hidden()
    kept = json.loads(page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])"))
    assert KEY in kept[0].values()
    assert KEY not in kept[1].values()
    expect(page.get_by_role("tab", name="Instruct")).to_have_attribute("aria-selected", "true")
    page.get_by_label("Prompt", exact=True).fill("a")
    page.get_by_label("Max tokens").fill("3")
    with page.expect_request("**/v1/completions") as request:
        page.keyboard.press("Control+Enter")
    assert request.value.headers["authorization"] == f"Bearer {KEY}"
    assert request.value.url == f"{guarded_url}/v1/completions"
    expect(page.locator("#completion .summary")).to_contain_text("tokens")
    page.locator("#instruct-code").click()
    curl = page.locator("#code-curl").text_content()
    assert "$API_KEY" in curl
    assert KEY not in curl
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator("#no-chat")).to_contain_text("This model takes no conversations")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    page.get_by_role("tab", name="Compare").click()
    expect(page.get_by_label("Send as")).to_have_value("instruct")


def test_a_key_that_is_not_given_can_be_given_later(open_page: OpenPage, guarded_url: str) -> None:
    page = open_page(guarded_url, expected=("401 (Unauthorized)", "400 (Bad Request)"))
    page.get_by_role("button", name="Not now").click()
    expect(page.get_by_text("This server needs an API key. Press")).to_be_visible()
    page.get_by_role("button", name="API key").click()
    page.get_by_role("dialog").get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    wait_for_model(page)
    expect(page.locator("#state")).to_be_hidden()


def violations(page: Any) -> list[str]:
    """Return what axe finds, with the elements."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("tags => axe.run(document, { runOnly: tags })", tags)["violations"]
    return [f"{rule['id']}: {node['html']} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"viewport": {"width": 1280, "height": 800}}, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(open_page: OpenPage, chat_server: ServerProcess, scheme: str, size: Any) -> None:
    page = open_page(chat_server.url, color_scheme=scheme, bypass_csp=True, **size)
    wait_for_model(page)
    assert violations(page) == []
    if size is PHONE:
        page.get_by_role("button", name="Settings").click()
    for group in ("Structured output", "Tools", "Tokens and probabilities"):
        page.locator("summary", has_text=group).click()
    page.get_by_label("The output is").select_option("json_schema")
    page.get_by_label("Request the tokens' probabilities").check()
    assert violations(page) == []
    page.get_by_label("The output is").select_option("none")
    if size is PHONE:
        page.get_by_role("button", name="Close").click()
    send(page, "Tell me a story about a fox.")
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.locator(".token").nth(2).focus()
    assert violations(page) == []
    page.keyboard.press("Enter")
    assert violations(page) == []
    page.get_by_role("button", name="Regenerate").click()
    page.locator("#chat-send").wait_for()
    page.locator(".turn-user").get_by_role("button", name="Edit").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    for opened in ("#chat-examples", "#chat-code"):
        page.locator(opened).click()
        assert violations(page) == []
        page.keyboard.press("Escape")
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("One prompt, two settings").fill("Write a Python function that reverses a list.")
    page.get_by_role("button", name="Run both").click()
    expect(page.get_by_role("button", name="Run both")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("tab", name="Instruct").click()
    page.get_by_label("Prompt", exact=True).fill("Once upon a time")
    page.get_by_role("button", name="Generate").click()
    page.locator("#instruct-send").wait_for()
    assert violations(page) == []
