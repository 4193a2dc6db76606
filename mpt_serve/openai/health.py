"""GET /health, /ready, /load and /version."""

from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.protocol.responses import Load, Status, Version
from mpt_serve.openai.server_context import ServerContext

__all__ = ["get_load", "get_version", "health", "program_version", "ready"]


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


def get_load(context: ServerContext) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Return the endpoint that reports how much this replica of the Ingress works on."""

    async def endpoint(request: Request) -> JSONResponse:
        load: Load = {"server_load": context.backend.load()}
        return JSONResponse(load)

    return endpoint


async def get_version(request: Request) -> JSONResponse:
    """Return the program's version."""
    body: Version = {"version": program_version()}
    return JSONResponse(body)


def program_version() -> str:
    """Return the program's version."""
    try:
        return version("mpt-serve")
    except PackageNotFoundError:  # a source tree that is not installed
        return "unknown"
