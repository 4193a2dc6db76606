"""GET /health, /ready and /version."""

from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.server_context import ServerContext

__all__ = ["get_version", "health", "ready"]


async def health(request: Request) -> JSONResponse:
    """Say that the process is alive; it answers while the model loads, too."""
    return JSONResponse({"status": "ok"})


def ready(service: ServerContext) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Return the endpoint that says whether a request would be served now; 503 when not."""

    async def endpoint(request: Request) -> JSONResponse:
        await service.require_ready()
        return JSONResponse({"status": "ready"})

    return endpoint


async def get_version(request: Request) -> JSONResponse:
    """Return the program's version."""
    try:
        return JSONResponse({"version": version("mpt-serve")})
    except PackageNotFoundError:  # run from a source tree that is not installed
        return JSONResponse({"version": "unknown"})
