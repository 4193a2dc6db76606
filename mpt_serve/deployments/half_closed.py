"""Tells a client that has only finished sending from one that has left.

Both look the same: the client's side of the connection ends. A client that is still there takes what is sent to it,
while the system of one that has left responds with a reset. So something is sent that means nothing: an interim
response before a response, a comment in a stream of events.
"""

import asyncio
import socket
import sys
from collections.abc import Callable

__all__ = ["COMMENT", "CONTINUE", "HalfClosed"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
COMMENT = b"3\r\n:\n\n\r\n"  # as a chunk

_CLOSED = 7  # TCP_CLOSE of Linux' tcp_states.h
_FIRST_LOOK_S = 0.001
_PROBE_S = 1.0  # between two probes, as the client may leave later


class HalfClosed:
    """A connection whose client sends nothing more.

    probe: returns what may be sent now and means nothing, empty for nothing. leave: called once if the client has left.
    """

    def __init__(self, transport: asyncio.Transport, probe: Callable[[], bytes], leave: Callable[[], None]) -> None:
        self._transport = transport
        self._probe = probe
        self._leave = leave
        self._timer: asyncio.TimerHandle | None = None

    @staticmethod
    def can_watch(transport: asyncio.Transport) -> bool:
        """Return whether a connection's reset can be seen, and its client's end be survived."""
        return sys.platform == "linux" and transport.get_extra_info("sslcontext") is None

    def begin(self) -> bool:
        """Probe the client, and return whether it has left already; else look again, until `end`."""
        self._send()
        if self._is_reset():
            return True
        self._look_in(_FIRST_LOOK_S)
        return False

    def end(self) -> None:
        """Look no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look, seconds)

    def _look(self, waited: float) -> None:
        if self._is_reset():
            self._leave()
            return
        if waited >= _PROBE_S:
            self._send()
        self._look_in(min(2 * waited, _PROBE_S))

    def _send(self) -> None:
        if self._transport.get_write_buffer_size() == 0:  # else what waits there does as well
            self._transport.write(self._probe())

    def _is_reset(self) -> bool:
        own = self._transport.get_extra_info("socket")
        with socket.socket(own.family, own.type, fileno=socket.dup(own.fileno())) as copy:
            return copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED
