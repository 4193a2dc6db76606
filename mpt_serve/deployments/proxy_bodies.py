"""Bodies that Serve's proxy reads before it passes a request on.

Serve's proxy takes as much of a body as a client sends, whatever becomes of the request. Here a body is complete and
within the limits before Serve or an application knows of its request, so that what is unfinished costs no more than a
connection.
"""

from starlette.types import Receive, Scope

from mpt_serve.deployments.response_wire import BODY_KEY, MAX_BODY_ALONG
from mpt_serve.openai.arriving_bodies import ArrivingBodies, BodySize, received_again

__all__ = ["has_body", "with_body_read"]


def has_body(scope: Scope) -> bool:
    """Return whether a request announces a body."""
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


async def with_body_read(bodies: ArrivingBodies, scope: Scope, receive: Receive, size: BodySize) -> Receive:
    """Read a request's body, and return what receives it in one message, and the disconnect after it.

    A small one goes along in the scope, too, as it costs an Ingress a call to ask for it. Raises what
    `ArrivingBodies.read` raises.
    """
    body = await bodies.read(scope["headers"], receive, size)
    if len(body) <= MAX_BODY_ALONG:
        scope[BODY_KEY] = body
    return received_again(body, receive)
