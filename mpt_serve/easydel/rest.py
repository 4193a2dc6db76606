"""EasyDeL's endpoints, POST /chat, POST /instruct and GET /status, in the process whose class writes the prompts."""

import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mpt_serve.easydel.completions import ServerRequestError
from mpt_serve.easydel.server_config import JAXServerError

__all__ = ["ChatRequest", "InstructRequest", "Responder", "RestThread", "rest_app"]

_MAX_BODY = 8 * 2**20
Body = TypeVar("Body", bound=BaseModel)


class InstructRequest(BaseModel):
    """The body of POST /instruct."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    system: str | None = None
    temperature: float | None = None
    greedy: bool = False


class ChatRequest(BaseModel):
    """The body of POST /chat. history: pairs of what was said and what came back."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    history: list[tuple[str, str]] | None = None
    temperature: float | None = None
    greedy: bool = False


class Responder(Protocol):
    """What computes the responses, each on a thread."""

    def forward_chat(self, data: ChatRequest) -> dict[str, Any]:
        """Return the response to a turn of a conversation."""

    def forward_instruct(self, data: InstructRequest) -> dict[str, Any]:
        """Return the response to an instruction."""

    def status(self) -> dict[str, Any]:
        """Return what is served, and whether it is ready."""


def rest_app(responder: Responder) -> Starlette:
    """Return the application of the three endpoints."""

    async def status(request: Request) -> Response:
        return await _respond(responder.status)

    return Starlette(
        routes=[
            Route("/chat", _endpoint(ChatRequest, responder.forward_chat), methods=["POST"]),
            Route("/instruct", _endpoint(InstructRequest, responder.forward_instruct), methods=["POST"]),
            Route("/status", status),
        ]
    )


def _endpoint(kind: type[Body], respond: Callable[[Body], dict[str, Any]]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_BODY:
                return _error(413, f"the body is larger than {_MAX_BODY} bytes")
        try:
            data = kind.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors()[0]
            return _error(400, f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}")
        return await _respond(respond, data)

    return endpoint


async def _respond(respond: Callable[..., dict[str, Any]], *arguments: object) -> Response:
    try:
        return JSONResponse(await run_in_threadpool(respond, *arguments))
    except ServerRequestError as error:
        return _error(error.status, str(error))
    except JAXServerError as error:
        return _error(503, str(error))


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status)


class RestThread:
    """Serves an application on a thread of this process until `stop`. Raises JAXServerError for an address in use."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise JAXServerError(f"host {host!r} and port {port} cannot be listened on: {error.strerror}") from None
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._run, name="mpt-serve-rest", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let the requests that run finish, and stop listening."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
