"""What both ends of a link between two processes agree on.

A link is a connection on which one process sends what its streams produce to another: Generators send deltas to
Ingresses, Ingresses send events to Serve's proxies. Between nodes it is TCP; on one node it is a Unix socket, which
costs less. A frame is one msgpack object, which needs no length before it.
"""

import hashlib
import os
import socket
import sys
from dataclasses import dataclass

import msgpack

__all__ = [
    "ACCEPTED",
    "HELLO_BYTES",
    "SECRET_BYTES",
    "LinkAddress",
    "Unpacker",
    "encrypted_only",
    "keep_alive",
    "local_name",
    "pack",
]

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


def local_name(host: str, port: int, secret: bytes) -> str | None:
    """Return the name of a receiver's Unix socket, for senders on its own node; None where there are no such names.

    The name is in Linux' abstract namespace, so that no file is left behind, and says nothing of the secret.
    """
    if sys.platform != "linux":
        return None
    return "\0mpt-serve-link-" + hashlib.sha256(f"{host} {port} ".encode() + secret).hexdigest()


def keep_alive(connection: socket.socket) -> None:
    """Have a connection end within half a minute of the loss of the other end's node, which says nothing of it."""
    if sys.platform == "linux" and connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
            connection.setsockopt(socket.IPPROTO_TCP, option, seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def encrypted_only() -> bool:
    """Return whether Ray encrypts its connections: what it would have encrypted does not go over links."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
