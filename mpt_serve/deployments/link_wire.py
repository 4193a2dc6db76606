"""What both ends of a link between two processes agree on.

A link is a TCP connection on which one process sends what its streams produce to another: Generators send deltas to
Ingresses, Ingresses send events to Serve's proxies. A frame is one msgpack object, which needs no length before it.
"""

import os
from dataclasses import dataclass

import msgpack

__all__ = ["ACCEPTED", "HELLO_BYTES", "SECRET_BYTES", "LinkAddress", "Unpacker", "encrypted_only", "pack"]

SECRET_BYTES = 32
HELLO_BYTES = SECRET_BYTES + 8  # the secret, and the link's id
ACCEPTED = b"\x01"  # what the receiver replies

# Reads objects from a stream of bytes. Its buffer is bounded by what a request may report.
Unpacker = msgpack.Unpacker
pack = msgpack.Packer(autoreset=True).pack


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where the items of one stream go.

    host, port: of the receiver. secret: what a sender proves itself with. number: the receiver's name of the stream.
    """

    host: str
    port: int
    secret: bytes
    number: int


def encrypted_only() -> bool:
    """Return whether Ray encrypts its connections: what it would have encrypted does not go over links."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
