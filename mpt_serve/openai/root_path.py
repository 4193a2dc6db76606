"""The prefix of the public paths, for an application behind a proxy that serves it below one."""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["RootPath", "own_path", "public_root"]


class RootPath:
    """ASGI middleware, the outermost: everything behind it sees paths without prefix.

    The prefix alone is redirected to the prefix with a slash, so that the page there finds its files and the API.

    prefix: that a proxy in front has removed from the path, or has left there. Empty: Serve's route_prefix alone.
    """

    def __init__(self, app: ASGIApp, prefix: str = "") -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        mounted = scope.get("root_path", "")
        root = self._prefix or mounted
        if scope["path"] and scope["path"] in (mounted, self._prefix, mounted + self._prefix):
            await RedirectResponse(f"{root}/")(scope, receive, send)
            return
        path = own_path(scope, self._prefix)
        scope.setdefault("state", {})["public_root"] = root  # whoever is outside finds the request's id there, too
        await self._app({**scope, "path": path, "root_path": ""}, receive, send)


def own_path(scope: Scope, prefix: str) -> str:
    """Return the path of a request without Serve's route_prefix and the prefix of a proxy in front."""
    return _below(prefix, _below(scope.get("root_path", ""), scope["path"]))


def public_root(scope: Scope) -> str:
    """Return what stands before the paths of this application in the URLs of its clients; empty or `/...`."""
    return str(scope.get("state", {}).get("public_root", ""))


def _below(prefix: str, path: str) -> str:
    """Return a path without its prefix; unchanged if it has none."""
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path
