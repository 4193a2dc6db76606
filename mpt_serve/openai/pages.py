"""The pages for browsers: /docs renders /openapi.json, and / lets people try the model.

Their files are part of the package, so they need no other host and no build.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from mpt_serve.openai.errors import retry_headers

__all__ = ["DOCS_FILES", "PLAYGROUND_FILES", "pages", "starting_page"]

_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
# Scripts come from these files alone, none is in the page itself, and none may turn text into HTML.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:;"
    " connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # browsers ask whether their copy is current
}


def _static(*names: str) -> Traversable:
    return files("mpt_serve.openai").joinpath("static", *names)


def _files() -> Iterator[tuple[str, Traversable]]:
    """Yield the path of each file of the playground, and the file."""
    for file in sorted(_static("playground").iterdir(), key=lambda file: file.name):
        yield "/" if file.name == "index.html" else f"/playground/{file.name}", file


DOCS_FILES: Mapping[str, Traversable] = {
    "/docs": _static("docs.html"),
    "/docs/docs.css": _static("docs.css"),
    "/docs/docs.js": _static("docs.js"),
}
PLAYGROUND_FILES: Mapping[str, Traversable] = dict(_files())


def pages(contents: Mapping[str, Traversable]) -> Mapping[str, Callable[[Request], Awaitable[Response]]]:
    """Return the endpoints of files by path."""
    return {path: _page(file) for path, file in contents.items()}


def _page(file: Traversable) -> Callable[[Request], Awaitable[Response]]:
    content, media_type = file.read_bytes(), _MEDIA_TYPES[file.name.rpartition(".")[2]]
    headers = {**_HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def endpoint(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return endpoint


def starting_page(scope: Scope) -> Response | None:
    """Return what a person sees in a browser before the application runs; None for a request that is no browser's."""
    if scope["method"] != "GET" or "text/html" not in Headers(scope=scope).get("accept", ""):
        return None
    headers = {**_HEADERS, **retry_headers(2), "cache-control": "no-store"}
    return Response(_static("starting.html").read_bytes(), 503, headers, "text/html")
