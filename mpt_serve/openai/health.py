"""GET /health, /ready and /version."""

from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.protocol.responses import Status, Version
from mpt_serve.openai.server_context import ServerContext

__all__ = ["get_version", "health", "ready"]


async def health(request: Request) -> JSONResponse:
    """Report that the process is alive, while the model loads as well."""
    status: Status = {"status": "ok"}
    return JSONResponse(status)


def ready(context: ServerContext) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Return the endpoint that reports whether a request would be served now: 200, or 503 if not."""

    async def endpoint(request: Request) -> JSONResponse:
        await context.require_ready(wait=False)
        status: Status = {"status": "ready"}
        return JSONResponse(status)

    return endpoint


async def get_version(request: Request) -> JSONResponse:
    """Return the program's version."""
    try:
        body: Version = {"version": version("mpt-serve")}
    except PackageNotFoundError:  # a source tree that is not installed
        body = {"version": "unknown"}
    return JSONResponse(body)
