"""What tests do with the page. Playwright is imported where it is used, as it may not be installed."""

from collections.abc import Callable
from typing import Any

from mpt_serve.access.api_key import new_key

KEY, STORED_KEY = new_key("user")

OpenPage = Callable[..., Any]


def expect(target: Any) -> Any:
    """Return Playwright's assertions of a locator or a page, which wait until they hold."""
    from playwright.sync_api import expect as assertions_of

    return assertions_of(target)


def wait_for_model(page: Any) -> None:
    """Wait until the page knows the served model."""
    page.locator("#model:not(:empty)").wait_for(state="attached")


def send(page: Any, text: str) -> None:
    """Send a chat message, and wait until its response is complete."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Control+Enter")
    page.locator("#chat-send").wait_for()


def last_text(page: Any) -> str:
    """Return the text of the last response."""
    return str(page.locator(".turn-assistant .text").last.inner_text())


def sent_by(page: Any, path: str, action: Callable[[], None]) -> Any:
    """Return the JSON that an action sends to a path."""
    with page.expect_request(f"**/{path}") as request:
        action()
    return request.value.post_data_json


def stream(*chunks: str) -> dict[str, Any]:
    """Return what `route.fulfill` takes for a stream of these chunks of JSON."""
    body = "".join(f"data: {chunk}\n\n" for chunk in (*chunks, "[DONE]"))
    return {"status": 200, "content_type": "text/event-stream", "body": body}
