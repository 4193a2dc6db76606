"""Where Serve's gRPC server in a replica listens.

It unpickles what it receives without asking who sent it, and Serve opens it on every address of the machine. Serve's
proxies and other replicas reach it at the node's address alone. Serve has no option for it, so the function that opens
the port is replaced.
"""

import logging
from typing import Any

import ray
from ray._common.network_utils import build_address
from ray.serve._private import replica

__all__ = ["listen_on_the_nodes_address"]

logger = logging.getLogger("ray.serve")

_EVERYWHERE = "[::]:0"
_NAME = "add_port_to_grpc_server"


def listen_on_the_nodes_address() -> None:
    """Let Serve's gRPC server of this process, which it opens after the deployment's constructor, do so. Idempotent."""
    original = getattr(replica, _NAME, None)
    if original is None:
        logger.warning("This version of Serve opens its gRPC port in another way: it listens on every address.")
    elif not hasattr(original, "of_the_node"):
        setattr(replica, _NAME, _of_the_node(original))


def _of_the_node(original: Any) -> Any:
    def add_port(server: Any, address: str) -> int:
        if address == _EVERYWHERE:
            own = build_address(ray.util.get_node_ip_address(), 0)
            try:
                return int(original(server, own))
            except RuntimeError:  # behind a translation of addresses the node's is none of this machine's
                logger.warning("Serve's gRPC port cannot be opened at %s alone: it listens on every address.", own)
        return int(original(server, address))

    add_port.of_the_node = True  # type: ignore[attr-defined]
    return add_port
