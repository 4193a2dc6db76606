"""The application behind a real HTTP server on a loopback port."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fake_backend import FakeBackend
from starlette.applications import Starlette
from waiting import PATIENCE_S

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app


class Server:
    """The application on a loopback port, in a thread with a real server, over a fake backend."""

    def __init__(self, backend: FakeBackend, limits: Limits, app: Starlette | None = None) -> None:
        self.backend = backend
        # With the protocol left open, asyncio would not switch off Nagle's algorithm: 40 ms for each response.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(app or create_app(backend, limits), log_level="warning", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def start(self) -> None:
        self._thread.start()
        self.wait_until(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def sent(self, path: str, body: dict[str, Any]) -> socket.socket:
        """Return a connection on which a request has been sent, whose client may leave when the test says so."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
        connection = socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])))
        connection.sendall(f"{head}\r\n\r\n".encode() + content)
        return connection

    @staticmethod
    def wait_until(condition: Callable[[], bool]) -> None:
        """Wait for something that happens in the server's thread."""
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, "it did not happen"
            time.sleep(0.005)


@contextmanager
def serving(
    backend: FakeBackend | None = None, limits: Limits | None = None, app: Starlette | None = None
) -> Iterator[Server]:
    """Serve a separate backend for the length of the context. app: in place of its usual application."""
    server = Server(backend or FakeBackend(), limits or Limits(), app)
    server.start()
    try:
        yield server
    finally:
        server.stop()
