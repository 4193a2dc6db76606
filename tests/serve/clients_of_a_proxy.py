"""A client of Serve's proxy, and an application whose streams it receives, without a server."""

import asyncio

from starlette.types import Message, Receive, Scope, Send

from mpt_serve.deployments.response_wire import LINK_HEADER

EVENTS = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Client:
    """A client of the proxy: keeps what it receives, and reads and leaves as the test says."""

    def __init__(self) -> None:
        self.start: Message | None = None
        self.bodies: list[bytes] = []
        self.complete = False
        self.reads = asyncio.Event()
        self.reads.set()
        self.left = asyncio.Event()
        self._asked = False

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.left.is_set():
            raise OSError("the client has left")
        if message["type"] == "http.response.start":
            assert self.start is None
            self.start = message
            return
        assert self.start is not None
        assert not self.complete
        self.bodies.append(message["body"])
        self.complete = not message.get("more_body", False)
        await self.reads.wait()


async def events(scope: Scope, receive: Receive, send: Send) -> None:
    assert LINK_HEADER not in dict(scope["headers"])
    await send(EVENTS)
    for number in range(100):
        await send(part(b"data: %d\n\n" % number))
        if number % 3 == 0:
            await asyncio.sleep(0)
    await send(part(b"data: [DONE]\n\n", more=False))


ALL_EVENTS = b"".join(b"data: %d\n\n" % number for number in range(100)) + b"data: [DONE]\n\n"
