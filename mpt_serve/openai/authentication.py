"""Who may call which endpoint."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.client import Client
from mpt_serve.openai.errors import InvalidApiKeyError, MissingScopeError

__all__ = ["ADMIN_PATHS", "PUBLIC_PATHS", "Authentication", "client_of", "presented_key"]

# By the path as the router compares it: decoded, and only in this spelling. Whatever is not listed needs a key.
PUBLIC_PATHS = frozenset({"/health", "/ready"})
ADMIN_PATHS = frozenset({"/stats", "/metrics"})

_EVERYONE = Client()


def client_of(scope: Scope) -> Client:
    """Return who sent a request: the owner of its key, or everyone where no keys are required."""
    client: Client = scope.get("state", {}).get("client", _EVERYONE)
    return client


class Authentication:
    """ASGI middleware that admits requests with a key of the right scope, and counts them.

    public: paths that need no key, beside `PUBLIC_PATHS`.
    A key is `Authorization: Bearer KEY`, or `X-Api-Key: KEY`. Its owner is `client` in the request's state.
    """

    def __init__(self, app: ASGIApp, access: AccessControl, public: Collection[str] = ()) -> None:
        self._app = app
        self._public = PUBLIC_PATHS | frozenset(public)
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is no endpoint for it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path not in self._public:
                await self._authenticate(scope, "admin" if path in ADMIN_PATHS else "api")
        await self._app(scope, receive, send)

    async def _authenticate(self, scope: Scope, needed: str) -> None:
        """Raise InvalidApiKeyError, MissingScopeError, LimitExceededError or BusyError, or set the request's client."""
        presented = presented_key(Headers(scope=scope))
        key = None if presented is None else await self._access.keys.verify(presented)
        if key is None:  # whatever is wrong with it
            raise InvalidApiKeyError(presented is not None)
        if needed not in key.scopes:
            raise MissingScopeError(needed)
        client = self._access.clients.owner(key)
        if needed == "api":
            client.count_request()
        scope["state"].update(client=client, key_id=key.id)


def presented_key(headers: Headers) -> str | None:
    """Return the key in a request's headers; None without one, an empty text if there are several."""
    keys = headers.getlist("x-api-key")
    for value in headers.getlist("authorization"):
        scheme, _, key = value.partition(" ")
        keys.append(key.strip() if scheme.lower() == "bearer" else "")
    return None if not keys else keys[0] if len(set(keys)) == 1 else ""
