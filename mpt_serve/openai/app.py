"""The OpenAI-style API as one ASGI application."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.backend import Backend
from mpt_serve.openai.chat import prepare_chat
from mpt_serve.openai.completions import prepare_completion
from mpt_serve.openai.endpoint import GenerationEndpoint
from mpt_serve.openai.envelope import Envelope
from mpt_serve.openai.errors import on_http_exception
from mpt_serve.openai.gate import Gate
from mpt_serve.openai.health import get_version, health, ready
from mpt_serve.openai.models import get_model, list_models
from mpt_serve.openai.request_log import RequestLog
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.tokenize import detokenize, tokenize

__all__ = ["create_app"]


def create_app(backend: Backend, limits: Limits | None = None) -> Starlette:
    """Return the application that serves a backend's model."""
    limits = limits or Limits()
    routes = _routes(ServerContext(backend, limits))
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Gate, retry_after_s=backend.retry_after_s),
            Middleware(RequestLog, paths=[route.path for route in routes]),
            Middleware(Envelope, limits=limits),
        ],
        exception_handlers={HTTPException: on_http_exception},
    )
    app.router.redirect_slashes = False  # one spelling per path, so that a proxy's rule for it cannot be evaded
    return app


def _routes(context: ServerContext) -> list[Route]:
    return [
        Route("/v1/completions", GenerationEndpoint(context, prepare_completion), methods=["POST"]),
        Route("/v1/chat/completions", GenerationEndpoint(context, prepare_chat), methods=["POST"]),
        Route("/v1/models", list_models(context), methods=["GET"]),
        Route("/v1/models/{id:path}", get_model(context), methods=["GET"]),
        Route("/tokenize", tokenize(context), methods=["POST"]),
        Route("/detokenize", detokenize(context), methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready(context), methods=["GET"]),
        Route("/version", get_version, methods=["GET"]),
    ]
