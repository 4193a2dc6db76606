"""Takes the screenshots of the documentation, from a started server of the embedded model: `scripts/screenshots`.

An address as argument is that of a server that runs already.
"""

import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from playground_page import expect, send, wait_for_model
from playwright.sync_api import Browser, sync_playwright
from server import ServerProcess, free_port, serve_config

IMAGES = Path(__file__).parents[2] / "docs" / "images"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
SEED = "7"
STORY = "Tell me a story about a fox."


def main() -> None:
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        bundled = Path(playwright.chromium.executable_path)
        program = str(bundled) if bundled.exists() else next(filter(None, map(shutil.which, CHROMIUMS)), None)
        browser = stack.enter_context(playwright.chromium.launch(executable_path=program))
        url = sys.argv[1] if len(sys.argv) > 1 else _started(stack)
        for name, take, height, scheme in (
            ("chat", _chat, 760, "light"),
            ("compare", _compare, 620, "dark"),
            ("tokens", _tokens, 720, "light"),
        ):
            page = _open(browser, url, height, scheme)
            take(page)
            page.get_by_label("Temperature", exact=True).evaluate("field => field.scrollIntoView({block: 'center'})")
            page.screenshot(path=IMAGES / f"playground-{name}.png")
            page.context.close()
            print(f"docs/images/playground-{name}.png")


def _started(stack: ExitStack) -> str:
    """Return the address of a server that ends with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    config = serve_config({"model": "embedded"}, free_port())
    return stack.enter_context(ServerProcess.of(config, folder, command="mpt-serve")).wait_ready().url


def _open(browser: Browser, url: str, height: int, scheme: Any) -> Any:
    page = browser.new_context(viewport={"width": 1200, "height": height}, color_scheme=scheme).new_page()
    page.goto(f"{url}/")
    wait_for_model(page)
    return page


def _chat(page: Any) -> None:
    """A conversation with an alternative, and the beginning of the next message."""
    page.get_by_label("Seed").fill(SEED)
    send(page, "What is the capital of France?")
    send(page, "Write a Python function that checks if a string is a palindrome.")
    page.get_by_role("button", name="Regenerate").last.click()
    expect(page.locator(".branches")).to_have_text("‹2 / 2›")
    page.locator("#chat-send").wait_for()
    page.get_by_label("Message", exact=True).fill("Now tell me a story about a fox.")
    page.mouse.move(0, 0)


def _compare(page: Any) -> None:
    """The same prompt with two temperatures."""
    page.get_by_role("tab", name="Compare").click()
    for side, temperature in (("B", "0"), ("A", "0.7")):
        page.get_by_role("radio", name=f"Settings {side}").check()
        page.get_by_label("Seed").fill(SEED)
        page.get_by_label("Temperature", exact=True).fill(temperature)
    page.get_by_label("One prompt, two settings").fill(STORY)
    page.get_by_role("button", name="Run both").click()
    for side in range(2):
        expect(page.locator(".column .summary").nth(side)).to_contain_text("tokens/s", timeout=60_000)
    page.mouse.move(0, 0)


def _tokens(page: Any) -> None:
    """The tokens of a story, with the alternatives of one that was unlikely."""
    page.get_by_label("Seed").fill(SEED)
    page.get_by_text("Tokens and probabilities").click()
    page.get_by_label("Request the tokens' probabilities").check()
    send(page, STORY)
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.get_by_text("Tokens and probabilities").click()
    page.locator(".token").nth(6).hover()


if __name__ == "__main__":
    main()
