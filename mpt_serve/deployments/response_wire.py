"""What an Ingress and Serve's proxy agree on, for responses that do not go through Serve; see `response_link`.

The proxy adds a request header with the address for the response. An Ingress that sends it there says so in a response
header, and sends an empty body through Serve. An entry of a frame is a `Part`: what has come of one response since the
frame before, the first perhaps an empty one that shows where the response will come from; or a `Note`. What the proxy
sends back is the number of a response whose client has disconnected, or a `DirectRequest`.
"""

import hmac
import os
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack
from starlette.types import Scope

from mpt_serve.deployments.link_wire import LinkAddress
from mpt_serve.one_loop import LINK_KEY_VARIABLE

__all__ = [
    "BODY_KEY",
    "LINKED_HEADER",
    "LINK_HEADER",
    "LINK_HEADERS",
    "MAX_BODY_ALONG",
    "DirectRequest",
    "Headers",
    "Note",
    "NoteKind",
    "Part",
    "Start",
    "decode",
    "encode",
    "is_event_stream",
    "joined",
    "link_from",
    "link_header",
    "link_key",
    "received_request",
    "scope_to_send",
    "without_link_headers",
]

# Proxies keep their code until Ray is restarted, Ingresses until they are deployed again: the address is offered under
# another name whenever entries change, so that one of another version takes the way through Serve.
LINK_HEADER = b"x-mpt-response-link-3"
# Of all versions: no application sees them.
LINK_HEADERS = frozenset({LINK_HEADER, b"x-mpt-response-link-2", b"x-mpt-response-link"})
LINKED_HEADER = b"x-mpt-response-linked"
BODY_KEY = "mpt_serve.body"  # of the ASGI scope, which Serve passes on whole: the request's body, if it is small
MAX_BODY_ALONG = 64 * 1024
_SCOPE_KEYS = ("method", "path", "raw_path", "root_path", "query_string", "headers", "http_version", "scheme", "client",
               "server")  # fmt: skip

Headers = Sequence[tuple[bytes, bytes]]


class Start(NamedTuple):
    """The beginning of a response: its status and headers."""

    status: int
    headers: Headers

    def with_header(self, header: tuple[bytes, bytes]) -> "Start":
        """Return the start with a header, unless it has one with this name."""
        if any(name.lower() == header[0] for name, _ in self.headers):
            return self
        return self._replace(headers=[*self.headers, header])


class Part(NamedTuple):
    """A part of one response: its start, if that is in it, bytes of its body, and whether that ends with them."""

    start: Start | None
    body: bytes
    ends: bool


class NoteKind(IntEnum):
    """What an Ingress says of a request, or with the number 0 of itself."""

    READ = 0  # it has read the request
    REFUSED = 1  # it does not take this `DirectRequest`, of which nothing has been done
    FAILED = 2  # there will be no response, or not the rest of it
    REPLICA = 3  # its name in Serve is the note's text


class Note(NamedTuple):
    """A note on one request."""

    kind: NoteKind
    text: str = ""


class DirectRequest(NamedTuple):
    """A request that an Ingress gets over its link, with what Serve's proxy knows of it.

    number: of its response. scope: of ASGI, without what no application uses. route, request_id, internal_id: of
    Serve's context of the request.
    """

    number: int
    scope: dict[str, Any]
    body: bytes
    route: str
    request_id: str
    internal_id: str


def scope_to_send(scope: Scope) -> dict[str, Any]:
    """Return what an application needs of a request's scope."""
    kept = {key: scope[key] for key in _SCOPE_KEYS if key in scope}
    return {**kept, "headers": without_link_headers(scope["headers"])}


def without_link_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers that applications see."""
    return [header for header in headers if header[0] not in LINK_HEADERS]


def received_request(message: Sequence[Any]) -> DirectRequest:
    """Return the request in a message of a link's."""
    request = DirectRequest(*message)
    scope = request.scope
    scope["headers"] = [(name, value) for name, value in scope["headers"]]
    for key in ("client", "server"):
        scope[key] = tuple(scope[key]) if scope.get(key) else None
    return request._replace(scope={"type": "http", "asgi": {"version": "3.0"}, **scope})


def is_event_stream(headers: Headers) -> bool:
    """Return whether a response with these headers is a stream of events."""
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def joined(parts: Sequence[Part]) -> Part:
    """Return parts of one response that follow each other as one."""
    if len(parts) == 1:
        return parts[0]
    starts, bodies, ends = zip(*parts, strict=True)
    return Part(next(filter(None, starts), None), b"".join(bodies), any(ends))


def encode(entries: Iterable[tuple[int, Part | Note]]) -> bytes:
    """Return a frame of entries, each with the number of its response."""
    return bytes(msgpack.packb([(number, *entry) for number, entry in entries]))


def decode(entry: Sequence[Any]) -> tuple[int, Part | Note]:
    """Return a response's number and its part, or a note, from an entry of a frame."""
    number, *fields = entry
    if len(fields) == len(Note._fields):
        return number, Note(NoteKind(fields[0]), fields[1])
    start, body, ends = fields
    return number, Part(
        None if start is None else Start(start[0], [(name, value) for name, value in start[1]]), body, ends
    )


def link_key() -> str:
    """Return what proves to an Ingress that a header is a proxy's and no client's; empty if the nodes have none."""
    return os.environ.get(LINK_KEY_VARIABLE, "")


def link_header(address: LinkAddress, key: str) -> bytes:
    """Return the value of LINK_HEADER."""
    return f"{key} {address.host} {address.port} {address.secret.hex()} {address.number}".encode()


def link_from(value: bytes, key: str) -> LinkAddress | None:
    """Return the address in the value of LINK_HEADER; None if it was not made with the key."""
    sent, _, place = value.partition(b" ")
    if not key or not hmac.compare_digest(sent, key.encode()):
        return None
    host, port, secret, number = place.decode().split(" ")
    return LinkAddress(host, int(port), bytes.fromhex(secret), int(number))
