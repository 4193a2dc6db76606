"""The spans of the Ingress: one for each HTTP request, and what its calls to other deployments carry."""

from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.deployments.tracing import Carrier, Tracing
from mpt_serve.openai.request_log import METHODS, POLLS
from mpt_serve.openai.root_path import own_path
from mpt_serve.openai.route_names import OTHER_PATH, RouteNames

__all__ = ["TracedApp", "current_carrier"]

_carrier: ContextVar[Carrier | None] = ContextVar("carrier", default=None)


def current_carrier() -> dict[str, Carrier]:
    """Return the argument with which another deployment continues the request's trace; none where it is not traced."""
    carrier = _carrier.get()
    return {} if carrier is None else {"carrier": carrier}


class TracedApp:
    """ASGI middleware around the whole application. names: what is shown of paths. prefix: as of `RootPath`."""

    def __init__(self, app: ASGIApp, tracing: Tracing, names: RouteNames, prefix: str = "") -> None:
        self._app = app
        self._tracing = tracing
        self._names = names
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (own := own_path(scope, self._prefix)) in POLLS:
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind

        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        path = self._names.of(own) or OTHER_PATH
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        about = {"http.request.method": method, "http.route": path}
        state = scope.setdefault("state", {})  # which copies of the scope share
        with self._tracing.span(f"{method} {path}", headers, SpanKind.SERVER, **about) as span:

            async def send_watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        self._tracing.fail(span, str(message["status"]))
                await send(message)

            token = _carrier.set(self._tracing.carrier_of(span))
            try:
                await self._app(scope, receive, send_watched)
            finally:
                _carrier.reset(token)
                span.set_attribute("mpt_serve.request_id", state.get("request_id", ""))
