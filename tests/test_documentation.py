"""The documentation: its site builds, its links lead somewhere, and what it lists is complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpt_serve.openai import errors

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for folder in (".", "docs", "cluster", "benchmarks", "training") for path in (ROOT / folder).glob("*.md")
)
_CODE = re.compile(r"^(`{3,}).*?^\1$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("mkdocs")), "build", "--quiet", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} | {"security", "clusters", "changelog"}
    assert {page.stem for page in tmp_path.glob("*.html")} - {"404"} == pages
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://[^\"]*", html)
    assert 'href="security.html"' in html  # SECURITY.md is a page
    assert (tmp_path / "notebook.ipynb").is_file()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: there is no such heading"


def test_every_error_code_says_what_to_do() -> None:
    own = {error.code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")}
    codes = {code for code in own if isinstance(code, str)} | set(errors.NotReadyError.CODES)
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (?:client|server) \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(codes)


def test_the_plot_is_that_of_the_tables() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from plot_ratios import PAGE, render, tables
    finally:
        sys.path.pop(0)
    found = tables(PAGE.read_text(encoding="utf-8"))
    assert list(found) == ["M, bf16", "M, int8", "M, int4", "L, bf16", "L, int8", "L, int4"]
    drawn = (ROOT / "docs" / "images" / "performance-ratios.svg").read_text(encoding="utf-8")
    renew = "run: python benchmarks/plot_ratios.py > docs/images/performance-ratios.svg"
    assert drawn == render(found), renew
