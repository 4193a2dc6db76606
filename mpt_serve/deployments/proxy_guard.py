"""What protects Serve's HTTP proxy from clients, and spares it requests that would be refused anyway.

Serve's proxy fails in plain text, with a 500, on header values that are not UTF-8, obeys headers of load balancers
whoever sends them, and takes any number of bodies of any size. Only code inside the proxy's process can prevent that:
Serve calls `middlewares` there if the environment of the node says so (`PROXY_GUARD` in `mpt_serve.one_loop`). Streamed
responses reach clients from here too, without Serve's messages: see `response_link`.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext

import ray
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.configuration.proxy_limits import ProxyLimits
from mpt_serve.deployments.beginnings import Beginning, Beginnings
from mpt_serve.deployments.cores import leave_cores_to_kernels
from mpt_serve.deployments.direct_proxy import DirectCalls, http_proxy
from mpt_serve.deployments.logs import hide_client_text
from mpt_serve.deployments.lost_requests import RespondToAll
from mpt_serve.deployments.proxy_admission import ProxyAdmission
from mpt_serve.deployments.proxy_bodies import has_body, with_body_read
from mpt_serve.deployments.proxy_connections import ABORT, EVENTS, bound_connections
from mpt_serve.deployments.proxy_errors import ProxyErrors
from mpt_serve.deployments.proxy_keys import ProxyKeys
from mpt_serve.deployments.proxy_send import patient_send
from mpt_serve.deployments.response_receiver import ResponseReceiver
from mpt_serve.deployments.response_wire import BODY_KEY, LINK_HEADERS, Headers, is_event_stream, link_key
from mpt_serve.deployments.unread_bodies import UnreadBodies
from mpt_serve.openai.arriving_bodies import ArrivingBodies, BodySize, received_again
from mpt_serve.openai.error_forms import error_response
from mpt_serve.openai.errors import ApiError, RouteNotFoundError
from mpt_serve.openai.gate import GENERATING_PATHS, OVERLOADED_HEADER, send_refusal
from mpt_serve.openai.http_versions import is_to_server, send_methods
from mpt_serve.openai.ids import request_id_from

__all__ = ["ProxyGuard", "middlewares"]

logger = logging.getLogger("ray.serve")

_REQUEST_ID = b"x-request-id"
_GENERATING = tuple(GENERATING_PATHS)  # ends of paths: the application may be at any prefix
_HOLD_WITHOUT_KEY_S = 1.0  # so that what refusals cost is bounded by the number of connections
_RETRY_WITHOUT_KEY_S = 2.0
# Instructions to Serve: which replica, how long, and whether to look for a disconnected client.
_INTERNAL = frozenset(
    {
        b"serve-multiplexed-model-id",
        b"x-session-id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        *LINK_HEADERS,
    }
)


def middlewares() -> list[Middleware]:
    """Return the middleware of Serve's proxy; Serve calls this in the proxy's process, before that listens."""
    hide_client_text()
    leave_cores_to_kernels()
    limits = ProxyLimits.from_environment()
    bound_connections(limits.bodies)
    return [Middleware(ProxyGuard, limits=limits, key=link_key()), Middleware(ProxyErrors)]  # the last is the outermost


class ProxyGuard:
    """ASGI middleware around Serve's proxy.

    Request ids are replaced unless they are harmless in logs, headers for Serve itself are removed, and so is every
    value that is not ASCII. Bodies are complete before Serve knows of their requests. Requests to generate are refused
    here, at a fraction of the cost, while the application would refuse them too (`ProxyAdmission`). Where all
    applications require API keys, those without one have a few separate places (`ProxyKeys`), and the requests of
    several clients begin in turns (`Beginnings`).

    key: of `link_key`, which Ingresses have too; without it, responses go through Serve.
    host: where Ingresses reach this process; None for this node's address in Ray.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: ProxyLimits | None = None,
        key: str = "",
        host: str | None = None,
        admission: ProxyAdmission | None = None,
    ) -> None:
        limits = limits or ProxyLimits()
        self._app: ASGIApp = RespondToAll(app)
        self._responses = ResponseReceiver(key) if key else None
        self._direct: DirectCalls | None = None  # once there is a request
        self._host = host
        self._bodies = ArrivingBodies(limits.bodies)
        self._unread = UnreadBodies(limits.bodies)
        self._admission = admission or ProxyAdmission(limits.max_running)
        self._keys = ProxyKeys.of(limits.keys)
        self._beginnings = Beginnings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if is_to_server(scope):  # Serve knows paths only
            await send_methods(send)
            return
        scope = {**scope, "headers": _harmless(scope["headers"])}
        if not scope["path"].startswith("/"):  # Serve would refuse it in plain text
            error = _named(RouteNotFoundError("There is no endpoint at this path."), scope)
            await error_response(error, scope)(scope, receive, send)
            return
        generates = scope["method"] == "POST" and scope["path"].endswith(_GENERATING)
        if generates and self._admission.is_full:
            await self._refuse(scope, receive, send)
            return
        client = ""
        if generates and self._keys is not None:
            owner = await self._keys.owner(scope["headers"])
            if owner is None:
                await self._try_without_key(self._keys, scope, receive, send)
                return
            client = owner
        await self._read_and_pass(scope, receive, send, client, generates)

    async def _try_without_key(self, keys: ProxyKeys, scope: Scope, receive: Receive, send: Send) -> None:
        """Let an Ingress refuse a request, as long as there are few like it; its key may be valid and very new."""
        if keys.is_full:
            await asyncio.sleep(_HOLD_WITHOUT_KEY_S)
            await self._send_refusal(scope, receive, send, _RETRY_WITHOUT_KEY_S)
            return
        keys.running_without_key += 1
        try:
            await self._read_and_pass(scope, receive, send, "", generates=False)
        finally:
            keys.running_without_key -= 1

    async def _read_and_pass(self, scope: Scope, receive: Receive, send: Send, client: str, generates: bool) -> None:
        abort: Callable[[], None] = scope.pop(ABORT, _no_connection)
        begin_events: Callable[[], None] = scope.pop(EVENTS, _no_connection)
        send = patient_send(send, abort)
        async with self._bodies.counted() as size:
            if has_body(scope):
                try:
                    receive = await with_body_read(self._bodies, scope, receive, size)
                except ApiError as error:
                    size.release()
                    rest = received_again(b"", receive) if size.complete else receive
                    await self._fail(scope, rest, send, abort, error)
                    return
                except ClientDisconnect:
                    return
            else:
                scope[BODY_KEY] = b""
            if generates:
                await self._generate(scope, receive, send, client, _Passed(size, begin_events))
            else:
                await self._respond(scope, receive, send, _Passed(size, begin_events))

    async def _fail(
        self, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None], error: ApiError
    ) -> None:
        response = error_response(_named(error, scope), scope)
        if "connection" in error.headers:  # it is closed
            await response(scope, receive, send)
        else:
            await self._unread.respond(scope, receive, send, abort, lambda to: response(scope, receive, to))

    async def _generate(self, scope: Scope, receive: Receive, send: Send, client: str, passed: "_Passed") -> None:
        if not self._admission.begin():
            await self._refuse(scope, receive, send)
            return
        passed.admission = self._admission
        try:
            passed.beginning = await self._beginnings.begin(client) if client else None
            await self._respond(scope, receive, send, passed)
        finally:
            passed.end()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (seconds := self._admission.hold_s()) > 0:
            await asyncio.sleep(seconds)
        await self._send_refusal(scope, receive, send, self._admission.retry_after_s())

    async def _send_refusal(self, scope: Scope, receive: Receive, send: Send, retry_after_s: float) -> None:
        headers = [(_REQUEST_ID, _request_id(scope))]
        abort: Callable[[], None] = scope.get(ABORT, _no_connection)
        await self._unread.respond(
            scope, receive, send, abort, lambda to: send_refusal(to, scope["path"], retry_after_s, headers)
        )

    async def _respond(self, scope: Scope, receive: Receive, send: Send, passed: "_Passed") -> None:
        """Pass a request on, and offer a link for its response."""
        send = passed.watched(send)
        responses, response = self._responses, None
        if responses is not None:
            responses.start(self._host or ray.util.get_node_ip_address())
            self._direct = self._direct or self._direct_calls(responses)
            response = await responses.open(receive, send, scope["path"], (_REQUEST_ID, _request_id(scope)))
        if responses is None or response is None:
            scope.pop(BODY_KEY, None)
            passed.begun()  # nothing will say when it has been read
            await self._app(scope, receive, send)
            return
        scope["headers"].append(response.header)
        response.on_read, response.on_end = passed.read, passed.end
        try:
            # Also where it is None: a request that follows on its connection begins with this one's context.
            offered = response if passed.generates else None
            with self._direct.offered(offered) if self._direct else nullcontext():
                await self._app(scope, response.receive, response.send)
        except Exception:
            if not response.incomplete:
                raise
            logger.warning("A response ended with an error of Serve's.", exc_info=True)
        finally:
            passed.end()
            responses.close_response(response)
        if response.incomplete:
            await response.finish()

    def _direct_calls(self, responses: ResponseReceiver) -> DirectCalls | None:
        proxy = http_proxy()
        return None if proxy is None else DirectCalls(responses, proxy)


class _Passed:
    """A request that was passed on: what the messages to its client show of it.

    size: of its body, which the application has when its response begins.
    begin_events: called if the response is a stream of events.
    admission: counts the request until its response is complete; None if nothing does.
    beginning: its place among those that begin; None if there are no bounds.
    """

    def __init__(self, size: BodySize, begin_events: Callable[[], None]) -> None:
        self._size = size
        self._begin_events = begin_events
        self.admission: ProxyAdmission | None = None
        self.beginning: Beginning | None = None

    @property
    def generates(self) -> bool:
        """Return whether this is a request to generate that has not ended."""
        return self.admission is not None

    def watched(self, send: Send) -> Send:
        """Return what takes notice of the messages that are sent."""

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._size.release()
                self.begun()
                self._note_headers(message["status"], message["headers"])
            elif not message.get("more_body", False):
                self.end()  # the client may take its time to read it
            await send(message)

        return send_watched

    def read(self) -> None:
        """Take note that an Ingress has read the request."""
        if self.beginning is not None:
            self.beginning.read()

    def begun(self) -> None:
        """Give its place among those that begin back. Idempotent."""
        if self.beginning is not None:
            self.beginning.begun()

    def end(self) -> None:
        """Count the request no longer. Idempotent."""
        if self.beginning is not None:
            self.beginning.end()
        if self.admission is not None:
            self.admission.end()
            self.admission = None

    def _note_headers(self, status: int, headers: Headers) -> None:
        if is_event_stream(headers):
            self._begin_events()
        if status == 503 and self.admission is not None:
            for name, value in headers:
                if name.lower() == OVERLOADED_HEADER:
                    self.admission.end_refused(float(value))
                    self.admission = None
                    return


def _named(error: ApiError, scope: Scope) -> ApiError:
    error.headers[_REQUEST_ID.decode()] = _request_id(scope).decode()
    return error


def _no_connection() -> None:
    """Stand for what a connection offers, where another server than uvicorn or another protocol of it is used."""


def _harmless(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers with one request id that is harmless, and without what Serve would obey or fail on."""
    kept = []
    request_id: str | None = None
    for name, value in headers:
        if name == _REQUEST_ID:
            request_id = value.decode("latin-1") if request_id is None else ""
        elif name.replace(b"_", b"-") not in _INTERNAL and name.isascii() and value.isascii():
            kept.append((name, value))
    return [*kept, (_REQUEST_ID, request_id_from(request_id).encode())]


def _request_id(scope: Scope) -> bytes:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next(value for name, value in headers if name == _REQUEST_ID)
