"""The page at /: what it is made of, and who gets it. tests/browser/ tests what it does."""

import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

import httpx
import pytest
from fake_backend import FakeBackend
from loopback_server import serving

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.api_key import new_key
from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app
from mpt_serve.openai.pages import PLAYGROUND_FILES, starting_page

MAX_LINES = 400
SCRIPTS = {path: file for path, file in PLAYGROUND_FILES.items() if path.endswith(".js")}
# What turns text into HTML or code; the page builds elements of text nodes instead.
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|\beval\b|new Function"
    r"|setAttribute\(\"style\"|srcdoc|javascript:"
)


def linked(text: str) -> Iterator[str]:
    yield from re.findall(r'(?:href|src)="([^"#]+)"', text)


def imported(file: Traversable) -> list[str]:
    return re.findall(r'from "([^"]*)"', file.read_text(encoding="utf-8"))


def test_all_files_come_from_this_server(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    own = {link for link in linked(page.text) if not link.startswith("data:")}
    assert own == {"docs", *(path[1:] for path in PLAYGROUND_FILES if path != "/")}
    for link in own:
        assert http.get(f"/{link}").status_code == 200
    for path, file in PLAYGROUND_FILES.items():
        response = http.get(path)
        assert response.content == file.read_bytes()
        assert "://" not in re.sub(r"https\?://", "", response.text)  # what links of outputs look like


def test_every_script_is_reached_from_the_page_and_no_import_leads_elsewhere() -> None:
    reached, left = set(), ["./main.js"]
    while left:
        name = left.pop()
        assert name.startswith("./")
        if name not in reached:
            reached.add(name)
            left += imported(PLAYGROUND_FILES[f"/playground/{name[2:]}"])
    assert {f"/playground/{name[2:]}" for name in reached} == SCRIPTS.keys()


@pytest.mark.parametrize("path", sorted(SCRIPTS))
def test_scripts_are_short_and_parse_no_html(path: str) -> None:
    text = SCRIPTS[path].read_text(encoding="utf-8")
    assert len(text.splitlines()) < MAX_LINES
    assert not FORBIDDEN.search(text)


def test_the_page_has_no_scripts_or_styles_in_itself() -> None:
    text = PLAYGROUND_FILES["/"].read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>", text) == ['<script type="module" src="playground/main.js">']
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


def test_every_id_that_scripts_look_for_is_in_the_page() -> None:
    text = PLAYGROUND_FILES["/"].read_text(encoding="utf-8")
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    wanted = {name for file in SCRIPTS.values() for name in re.findall(r'byId\("([^"]+)"\)', file.read_text())}
    assert wanted - {"fields"} <= set(ids)


def test_headers_of_all_files(http: httpx.Client) -> None:
    for path in PLAYGROUND_FILES:
        headers = http.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_a_current_copy_is_not_sent_again(http: httpx.Client) -> None:
    first = http.get("/playground/main.js")
    again = http.get("/playground/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert http.get("/playground/main.js", headers={"if-none-match": '"other"'}).content == first.content


def test_it_can_be_switched_off() -> None:
    backend = FakeBackend()
    with serving(backend, app=create_app(backend, playground=False)) as server, httpx.Client() as http:
        for path in PLAYGROUND_FILES:
            assert http.get(f"{server.url}{path}").status_code == 404
        assert http.get(f"{server.url}/docs").status_code == 200


@pytest.mark.parametrize("playground", [True, False])
def test_it_needs_no_key_itself(tmp_path: Path, playground: bool) -> None:
    _, stored = new_key("user")
    (tmp_path / "keys").write_text(stored.line())
    access = AccessControl.of(AccessSettings(key_file=str(tmp_path / "keys")), Limits())
    backend = FakeBackend()
    app = create_app(backend, access=access, playground=playground)
    with serving(backend, app=app) as server, httpx.Client() as http:
        for path in PLAYGROUND_FILES:  # without the page its paths are unknown ones, which need a key
            assert http.get(f"{server.url}{path}").status_code == (200 if playground else 401)
        for path in ("/playground", "/playground/", "/playground/../v1/models", "/playground/x.js", "/docs"):
            assert http.get(f"{server.url}{path}").status_code == 401


def test_below_a_prefix_all_links_stay_below_it() -> None:
    backend = FakeBackend()
    with serving(backend, app=create_app(backend, root_path="/llm")) as server, httpx.Client() as http:
        for spelling in ("/llm", "/llm?x=1"):
            redirect = http.get(f"{server.url}{spelling}")
            assert (redirect.status_code, redirect.headers["location"]) == (307, "/llm/")
        page = http.get(f"{server.url}/llm/")
        assert page.status_code == 200
        for link in linked(page.text):
            if not link.startswith("data:"):
                assert http.get(f"{server.url}/llm/{link}").status_code == 200


@pytest.mark.parametrize(
    ("method", "accept", "is_page"),
    [("GET", b"text/html,*/*;q=0.8", True), ("GET", b"application/json", False), ("POST", b"text/html", False)],
)
def test_browsers_get_a_page_before_the_application_runs(method: str, accept: bytes, is_page: bool) -> None:
    page = starting_page({"type": "http", "method": method, "headers": [(b"accept", accept)]})
    assert (page is not None) == is_page
    assert page is None or (page.status_code, page.headers["retry-after"]) == (503, "2")


def test_its_files_are_logged_as_polls_are(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="mpt_serve"), serving() as server, httpx.Client() as own:
        for path in ("/playground/main.js", "/"):
            own.get(f"{server.url}{path}", headers={"x-request-id": "page"})
    lines = [record.getMessage().rsplit(" in ", 1)[0] for record in caplog.records]
    assert [line for line in lines if line.startswith("page")] == ["page: GET / 200"]
