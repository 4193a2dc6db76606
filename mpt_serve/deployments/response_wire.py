"""What an Ingress and Serve's proxy agree on, for responses that do not go through Serve; see `response_link`.

The proxy adds a request header with the address for the response's body. An Ingress that sends it there says so in a
response header, and sends an empty body through Serve. An entry of a frame is `[number, body, whether it ends]`, the
first perhaps an empty one that shows where the response will come from. An entry with the number `read_note` says that
the Ingress has read the request. What the proxy sends back is the number of a response whose client has disconnected.
"""

import hmac
import os

from mpt_serve.deployments.link_wire import LinkAddress
from mpt_serve.one_loop import LINK_KEY_VARIABLE

__all__ = [
    "BODY_KEY",
    "LINKED_HEADER",
    "LINK_HEADER",
    "MAX_BODY_ALONG",
    "link_from",
    "link_header",
    "link_key",
    "read_note",
]

LINK_HEADER = b"x-mpt-response-link"
LINKED_HEADER = b"x-mpt-response-linked"
BODY_KEY = "mpt_serve.body"  # of the ASGI scope, which Serve passes on whole: the request's body, if it is small
MAX_BODY_ALONG = 64 * 1024


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


def read_note(number: int) -> int:
    """Return the number of the entry that says that a request has been read, and from that the request's."""
    return -1 - number
