"""What requests of other versions of HTTP, and those to no path, are owed."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.openai.errors import InvalidValueError, MissingHostError

__all__ = ["HttpVersions", "is_to_server", "send_methods"]

_METHODS = b"GET, HEAD, POST, OPTIONS"


class HttpVersions:
    """ASGI middleware: HTTP/1.1 needs one Host header, HTTP/1.0 knows no chunks, and `OPTIONS *` is a question.

    The server in front sends a response without a length in chunks whatever the version, so a stream to a client of
    HTTP/1.0 is gathered, and sent with its length when it is complete.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        version = scope.get("http_version")
        hosts = sum(name == b"host" for name, _ in scope["headers"])
        if version == "1.1" and hosts == 0:
            raise MissingHostError("A request of HTTP/1.1 needs the header Host.")
        if hosts > 1:
            raise InvalidValueError("The request has several headers Host: send one.")
        if is_to_server(scope):
            await send_methods(send)
            return
        await self._app(scope, receive, _Gathered(send).send if version == "1.0" else send)


def is_to_server(scope: Scope) -> bool:
    """Return whether a request asks what the server as a whole accepts: `OPTIONS *`."""
    return bool(scope["method"] == "OPTIONS" and scope["path"] == "*")


async def send_methods(send: Send) -> None:
    """Send the response to `OPTIONS *`."""
    await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", _METHODS)]})
    await send({"type": "http.response.body", "body": b""})


class _Gathered:
    """Sends a response whose length is unknown as one message, with its length."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if any(name == b"content-length" for name, _ in message["headers"]):
                await self._send(message)
            else:
                self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            length = (b"content-length", str(len(self._body)).encode())
            await self._send({**self._start, "headers": [*self._start["headers"], length]})
            await self._send({"type": "http.response.body", "body": bytes(self._body)})
