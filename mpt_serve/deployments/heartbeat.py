"""Shows the Ingresses that a process runs, also while all else in it is busy: a few bytes from a separate thread.

A Generator sends them on the links of its deltas, a Tokenizer on links that carry nothing else.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from mpt_serve.deployments.delta_wire import encode
from mpt_serve.deployments.link_sender import Link, Links

__all__ = ["PERIOD_S", "heartbeat_links", "start_heartbeat"]

PERIOD_S = 0.25


def start_heartbeat(beat: Callable[[], None], period_s: float = PERIOD_S) -> threading.Thread:
    """Call `beat` periodically on a new thread, for as long as the process runs.

    It needs some microseconds each time and no event loop, so that it comes through on a machine with far more to do
    than it can, where a call to the replica takes many seconds. A process that is stopped sends none.
    """

    def run() -> None:
        while True:
            time.sleep(period_s)
            beat()

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    return thread


class _HeartbeatLink(Link[None]):
    """A connection to an Ingress on which nothing is posted."""

    def encode(self, posted: Iterable[tuple[int, None]]) -> bytes:
        """Return a frame without deltas."""
        return encode(())

    def take(self, message: Any) -> None:
        """Ignore a message; there is no request that it could end."""

    def lose(self) -> None:
        """Do nothing: no request depends on the connection."""


def heartbeat_links() -> Links[_HeartbeatLink]:
    """Return the links of a process that sends no deltas."""
    return Links(_HeartbeatLink, "Ingress", "signs of life")
