"""A browser, and started servers whose page it opens. `scripts/test-browser` installs what these tests need."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playground_page import STORED_KEY, OpenPage, wait_for_model
from server import ServerProcess, free_port, serve_config

from mpt_serve.access.api_key import append_line

NEEDS = "needs Playwright, Chromium and axe-core; run scripts/test-browser"
AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless browser, with which these tests are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason=NEEDS)
    if not AXE.exists():
        pytest.skip(f"{NEEDS} ({AXE.name} is missing)")
    with sync_api.sync_playwright() as playwright:
        bundled = playwright.chromium.executable_path
        program = bundled if Path(bundled).exists() else next(filter(None, map(shutil.which, CHROMIUMS)), None)
        if program is None:
            pytest.skip(f"{NEEDS} (no Chromium is installed)")
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chat_server(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the embedded model, which takes conversations and tools."""
    args = {"model": "embedded", "engine": {"max_num_seqs": 4}}
    config = serve_config(args, free_port())
    with ServerProcess.of(config, tmp_path_factory.mktemp("chat"), command="mpt-serve") as server:
        yield server.wait_ready()


@pytest.fixture(scope="session")
def guarded_url(chromium: Any, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[str]:
    """The address of a server that requires a key, has no chat template, and is served below a prefix."""
    folder = tmp_path_factory.mktemp("guarded")
    append_line(folder / "keys", STORED_KEY)
    engine = {"max_num_seqs": 4, "pre_compile": False}
    access = {"key_file": str(folder / "keys")}
    args = {"model": str(tiny_checkpoint), "chat_template": "none", "engine": engine, "access": access}
    config = serve_config(args, free_port())
    config["applications"][0]["route_prefix"] = "/mpt"
    with ServerProcess.of(config, folder, command="mpt-serve") as server:
        server.url += "/mpt"
        yield server.wait_ready().url


@pytest.fixture
def open_page(chromium: Any) -> Iterator[OpenPage]:
    """A function that opens an address in a new window, with Playwright's options of contexts.

    Whatever the test does, the page must log no error and request nothing of another host. expected: parts of the
    browser's own lines about refused requests that may come.
    """
    contexts: list[Any] = []
    problems: list[str] = []

    def note(url: str, expected: tuple[str, ...]) -> Callable[[Any], None]:
        origin = httpx.URL(url).copy_with(path="/")

        def on_page(page: Any) -> None:
            page.on("pageerror", lambda error: problems.append(f"error: {error}"))
            page.on("console", lambda line: on_line(line.type, line.text))
            page.on("request", lambda request: on_request(request.url))

        def on_line(kind: str, text: str) -> None:
            if kind in ("error", "warning") and not any(part in text for part in expected):
                problems.append(f"console: {text}")

        def on_request(requested: str) -> None:
            if not requested.startswith((str(origin), "data:")):
                problems.append(f"another host: {requested}")

        return on_page

    def open_at(url: str, expected: tuple[str, ...] = (), **options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        context.on("page", note(url, expected))
        page = context.new_page()
        page.goto(f"{url}/")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert not problems, "\n".join(problems)


@pytest.fixture
def chat(open_page: OpenPage, chat_server: ServerProcess) -> Any:
    """The page of `chat_server`, ready, with a temperature of 0."""
    page = open_page(chat_server.url)
    wait_for_model(page)
    page.get_by_label("Temperature", exact=True).fill("0")
    return page
