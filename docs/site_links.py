"""A hook of MkDocs: links to files of the repository that are not part of the site become plain text."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[(?P<text>[^\]]+)\]\(\.\./(?P<path>[^)#\s]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's source with the path in the repository in place of each link that leaves `docs/`."""
    return _OUTSIDE.sub(lambda link: f"{link['text'].strip('`')} (`{link['path']}` in the repository)", markdown)
