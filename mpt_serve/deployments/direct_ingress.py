"""Requests that come to an Ingress over its links with Serve's proxies; see `direct_proxy`.

They run within what Serve does for each of its own calls to a replica: it counts them, so that it waits for them before
it stops the replica and other proxies know of them, bounds how many run at once, and logs them.
"""

import asyncio
import contextvars
import logging
from functools import partial

from ray.serve._private.common import RequestMetadata, RequestProtocol
from ray.serve._private.logging_utils import format_client_address
from starlette.types import ASGIApp, Message, Receive

from mpt_serve.deployments.drain import serve_replica
from mpt_serve.deployments.response_link import ResponseLink, disconnected
from mpt_serve.deployments.response_wire import DirectRequest, NoteKind, Start, is_event_stream
from mpt_serve.openai.arriving_bodies import received_again
from mpt_serve.openai.endpoint import ON_READ

__all__ = ["DirectRuns"]

logger = logging.getLogger("ray.serve")

_SEND_S = 5.0
_LOOK_PERIOD_S = 0.01


class DirectRuns:
    """Runs requests that come over links.

    replica: the name of this process in Serve; empty where Serve scales its deployment by the load, which it measures
        by its own calls alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._replica = serve_replica()
        self.replica = "" if self._is_scaled else str(self._replica._replica_id.unique_id)
        self._running: set[asyncio.Task[None]] = set()
        self._has_run = False

    def run(self, link: ResponseLink, request: DirectRequest) -> None:
        """Begin to run a request."""
        about = self._metadata(request)
        # In a new context: that of the event loop's callback is of the request that opened the link.
        task = asyncio.get_running_loop().create_task(self._run(link, request, about), context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    @property
    def _is_scaled(self) -> bool:
        return self._replica._deployment_config.autoscaling_config is not None

    def _metadata(self, request: DirectRequest) -> RequestMetadata:
        """Return what Serve has of each request."""
        return RequestMetadata(
            request_id=request.request_id,
            internal_request_id=request.internal_id,
            call_method="__call__",
            route=request.route,
            app_name=self._replica._deployment_id.app_name,
            is_streaming=True,
            _request_protocol=RequestProtocol.HTTP,
            _http_method=request.scope["method"],
            _client=format_client_address(request.scope["client"] or ""),
        )

    async def _run(self, link: ResponseLink, request: DirectRequest, about: RequestMetadata) -> None:
        # Between this and the acquisition of a place in `_start_request` there is no turn of the event loop.
        if self._is_scaled or not self._replica._can_accept_request(about):
            link.note(request.number, NoteKind.REFUSED)
            return
        if not self._has_run:
            self._has_run = True
            logger.info("Requests to generate come over the links with proxies.")
        response = _DirectResponse(link, request)
        scope = {**request.scope, ON_READ: response.tell_read}
        try:
            with self._replica._wrap_request(about) as note_status:
                async with self._replica._start_request(about):
                    await self._app(scope, response.receive, response.send)
                    await _sent(link)
                if response.status is not None:
                    note_status(str(response.status))
        except Exception:
            logger.debug("A request ended with an error, which Serve has logged.", exc_info=True)
        finally:
            response.close()


async def _sent(link: ResponseLink) -> None:
    """Wait until the proxy has taken what was sent, for a limited time: Serve may stop the replica after that."""
    link.flush()
    deadline = link.loop.time() + _SEND_S
    while link.behind and link.loop.time() < deadline:
        await asyncio.sleep(_LOOK_PERIOD_S)


class _DirectResponse:
    """Stands for the web server in front of the application, for one request.

    A stream of events goes over the link as it comes, any other response when it is complete.

    status: of the response, once it has begun.
    """

    def __init__(self, link: ResponseLink, request: DirectRequest) -> None:
        self._link = link
        self._number = request.number
        self._left = link.open(request.number)
        self._start: Start | None = None  # that has not been sent
        self._body = bytearray()  # that has not been sent
        self._streams = False
        self._ended = False
        self.status: int | None = None
        self.receive: Receive = received_again(request.body, partial(disconnected, self._left))
        link.send(self._number)  # the proxy knows by that that this replica has taken the request

    def tell_read(self) -> None:
        """Let the proxy know that the request has been read."""
        self._link.note(self._number, NoteKind.READ)

    async def send(self, message: Message) -> None:
        """Send a message of the response's. Raises OSError when its client has disconnected."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._start = Start(message["status"], message["headers"])
            self._streams = is_event_stream(message["headers"])
        else:
            if self._streams and self._left.done():
                raise OSError("the client has disconnected")
            self._body += message.get("body", b"")
            self._ended = not message.get("more_body", False)
        if self._streams or self._ended:
            self._link.send(self._number, bytes(self._body), ends=self._ended, start=self._start)
            self._start = None
            self._body.clear()

    def close(self) -> None:
        """Forget the response, and let the proxy know if it is not complete."""
        if not self._ended:
            self._link.note(self._number, NoteKind.FAILED)
        self._link.close_response(self._number)
