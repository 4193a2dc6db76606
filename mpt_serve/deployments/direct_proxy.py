"""Requests to generate that Serve's proxy passes to an Ingress over a link, in place of Serve's own call.

Serve's call is a message of gRPC each way, a choice of a replica in its router, and a queue for what the client sends:
more of a processor than all that an Ingress does for a short request. Serve still finds the application and counts,
logs and measures the request here; the Ingress' end is `direct_ingress`. Where no Ingress can take a request like this,
or one cannot that was asked, Serve calls one as ever.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray
from ray.serve._private.proxy_request_response import ResponseStatus
from ray.serve.context import _get_serve_request_context
from starlette.types import Message, Scope

from mpt_serve.deployments.linked_response import LinkedResponse, Outcome
from mpt_serve.deployments.response_receiver import IngressReplica, ResponseReceiver
from mpt_serve.deployments.response_wire import BODY_KEY, LINKED_HEADER, DirectRequest, scope_to_send

__all__ = ["DirectCalls", "http_proxy"]

_ROUTER = "PowerOfTwoChoicesRequestRouter"  # Serve's own, of which a process may have more than one copy
# Of requests without a response from an Ingress, for Serve's log and counters; `RespondToAll` makes that of the second.
_STATUSES = {Outcome.CLIENT_LEFT: 499, Outcome.FAILED: 503}


def http_proxy() -> Any:
    """Return Serve's own proxy in this process; None if this is no process of a proxy."""
    worker = ray._private.worker.global_worker
    return getattr(worker.actors.get(worker.actor_id), "http_proxy", None)


class DirectCalls:
    """Takes the place of Serve's calls to Ingresses, where these have links.

    proxy: of `http_proxy`.
    """

    def __init__(self, responses: ResponseReceiver, proxy: Any) -> None:
        self._responses = responses
        self._proxy = proxy
        self._response: ContextVar[LinkedResponse | None] = ContextVar("response", default=None)
        self._call_through_serve = proxy.send_request_to_replica
        proxy.send_request_to_replica = self._call

    @contextmanager
    def offered(self, response: LinkedResponse | None) -> Iterator[None]:
        """Let the request that Serve's proxy gets in the block be passed directly, with this response. None: not."""
        token = self._response.set(response)
        try:
            yield
        finally:
            self._response.reset(token)

    async def _call(
        self, request_id: str, internal_request_id: str, handle: Any, proxy_request: Any, **more: Any
    ) -> AsyncIterator[Message | ResponseStatus]:
        """Yield what Serve's proxy has to send: of a direct response the start and the end, for Serve to know of."""
        scope: Scope = proxy_request.scope
        response = self._response.get()
        replica = None if response is None or BODY_KEY not in scope else self._replica(handle)
        if response is not None and replica is not None:
            route = _get_serve_request_context().route
            sent = scope_to_send(scope)
            request = DirectRequest(response.number, sent, scope[BODY_KEY], route, request_id, internal_request_id)
            replica.running += 1
            try:
                outcome = await response.pass_directly(replica.connection, request)
                if outcome is Outcome.BEGUN:
                    yield {"type": "http.response.start", "status": response.status, "headers": [(LINKED_HEADER, b"1")]}
                    await response.wait_for_end()
                    yield {"type": "http.response.body", "body": b"", "more_body": False}
            except (asyncio.CancelledError, GeneratorExit):
                response.drop()  # else the Ingress would go on
                raise
            finally:
                replica.running -= 1
            if outcome is not Outcome.NOT_TAKEN:
                status = _STATUSES.get(outcome, response.status)
                yield ResponseStatus(code=str(status), is_error=status >= 400)
                return
        async for message in self._call_through_serve(
            request_id=request_id,
            internal_request_id=internal_request_id,
            handle=handle,
            proxy_request=proxy_request,
            **more,
        ):
            yield message

    def _replica(self, handle: Any) -> IngressReplica | None:
        """Return the replica with the fewest requests; None if some have no link, as Serve opens these by its calls."""
        if self._proxy.request_timeout_s is not None:  # Serve's own calls alone follow it
            return None
        try:
            router = handle._router._asyncio_router._request_router
            running = {replica.replica_id.unique_id: replica.node_id for replica in router.curr_replicas.values()}
        except AttributeError:  # Serve has not called a replica yet
            return None
        if type(router).__qualname__ != _ROUTER:  # another has been configured, for its own choice
            return None
        # As Serve's router does: replicas on other nodes are asked where there is none on this one.
        names = [name for name, node in running.items() if node == self._proxy._node_id] or list(running)
        linked = self._responses.replicas
        if not names or any(name not in linked for name in names):
            return None
        return min((linked[name] for name in names), key=lambda replica: (replica.running, random.random()))
