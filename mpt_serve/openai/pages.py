"""GET /docs: a page that renders /openapi.json. Its files are part of the package, so it needs no other host."""

from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["pages"]

_FILES = {
    "/docs": ("docs.html", "text/html"),
    "/docs/docs.css": ("docs.css", "text/css"),
    "/docs/docs.js": ("docs.js", "text/javascript"),
}
_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def pages() -> Mapping[str, Callable[[Request], Awaitable[Response]]]:
    """Return the endpoints of the page's files by path."""
    return {path: _page(name, media_type) for path, (name, media_type) in _FILES.items()}


def _page(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = files("mpt_serve.openai").joinpath("static", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return endpoint
