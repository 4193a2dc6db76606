"""The requests that the documentation shows, sent to the application: README.md, docs/index.md and other pages."""

import json
import re
from pathlib import Path

import httpx
import pytest
from loopback_server import Server

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/index.md", "docs/structured-outputs.md", "docs/tools.md")
_CURL = re.compile(r"curl (?:-N )?http://127\.0\.0\.1:8000(\S+) -H 'Content-Type: application/json' -d '(.*?)'\n", re.S)


def requests() -> list[tuple[str, str, str]]:
    """Return the page, the path and the body of each call of curl."""
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    return [(page, *found) for page, text in texts.items() for found in _CURL.findall(text)]


def test_each_page_shows_one() -> None:
    shown = [page for page, _, _ in requests()]
    for page in PAGES:
        assert shown.count(page) == (ROOT / page).read_text(encoding="utf-8").count("curl ") == 1


@pytest.mark.parametrize(("page", "path", "body"), requests(), ids=lambda value: value[:24])
def test_requests_are_answered(http: httpx.Client, page: str, path: str, body: str) -> None:
    response = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    if json.loads(body).get("stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        assert response.json()["choices"]


def test_the_lines_of_a_batch_are_requests(http: httpx.Client) -> None:
    text = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
    lines = [
        json.loads(line)
        for block in re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)
        for line in block.splitlines()
    ]
    requests = {line["custom_id"]: line for line in lines if "body" in line}
    assert len(requests) == 2
    for line in requests.values():
        assert http.request(line["method"], line["url"], json=line["body"]).status_code == 200
    (result,) = (line for line in lines if "response" in line)
    assert result["custom_id"] in requests


def test_the_official_client_works_as_it_is(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(from openai .*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    here = program.replace("http://127.0.0.1:8000", server.url).replace('"embedded"', '"mpt-echo"')
    exec(compile(here, "README.md", "exec"), {})
    assert capsys.readouterr().out
