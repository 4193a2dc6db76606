"""A hook of MkDocs: pages of the site that are files elsewhere in the repository, and links that leave `docs/`."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# Where people look for them in the repository, and their names in the site.
PAGES = {"SECURITY.md": "security.md", "cluster/README.md": "clusters.md", "CHANGELOG.md": "changelog.md"}

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not in `docs/`."""
    for path, name in PAGES.items():
        text = (_ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_links(text, PurePosixPath(path).parent)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page's source with its links as they are in the site."""
    return markdown if page.file.src_uri in PAGES.values() else _links(markdown, PurePosixPath("docs"))


def _links(markdown: str, folder: PurePosixPath) -> str:
    """Return a folder's text with links to pages of the site, and those to other files as plain text."""

    def replaced(link: re.Match[str]) -> str:
        parts: list[str] = []
        for part in (folder / link["path"]).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        path = "/".join(parts)
        page = PAGES.get(path.rstrip("/")) or PAGES.get(f"{path.rstrip('/')}/README.md")
        if page is None and parts[0] == "docs":
            page = "/".join(parts[1:])
        if page is not None:
            return f"[{link['text']}]({page}{link['anchor'] or ''})"
        return f"{link['text'].strip('`')} (`{path}` in the repository)"

    return _LINK.sub(replaced, markdown)
