"""The OpenAI-style API as one ASGI application."""

from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.audit_log import AuditLog
from mpt_serve.configuration.limits import IGNORED_FIELDS_HEADER, Limits
from mpt_serve.openai.anthropic import count_tokens, prepare_message
from mpt_serve.openai.audit import Audit
from mpt_serve.openai.authentication import Authentication
from mpt_serve.openai.backend import Backend
from mpt_serve.openai.batches import BatchEndpoints
from mpt_serve.openai.batching import Batching
from mpt_serve.openai.chat import prepare_chat
from mpt_serve.openai.completions import prepare_completion
from mpt_serve.openai.cors import Cors
from mpt_serve.openai.embeddings import prepare_embeddings
from mpt_serve.openai.endpoint import GenerationEndpoint
from mpt_serve.openai.envelope import Envelope
from mpt_serve.openai.error_forms import on_http_exception
from mpt_serve.openai.errors import NotEnabledError
from mpt_serve.openai.files import FileEndpoints
from mpt_serve.openai.gate import Gate
from mpt_serve.openai.health import get_load, get_version, health, ready
from mpt_serve.openai.http_versions import HttpVersions
from mpt_serve.openai.models import get_model, list_models
from mpt_serve.openai.openapi import openapi
from mpt_serve.openai.pages import DOCS_FILES, PLAYGROUND_FILES, pages
from mpt_serve.openai.request_log import POLLS, RequestLog
from mpt_serve.openai.responses import prepare_response
from mpt_serve.openai.root_path import RootPath
from mpt_serve.openai.route_names import RouteNames
from mpt_serve.openai.score import prepare_rerank, prepare_score
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.server_metrics import ServerMetrics
from mpt_serve.openai.tokenize import detokenize, tokenize
from mpt_serve.openai.tokenizer_info import tokenizer_info

__all__ = ["create_app"]


# What pages of other origins may read of a response, beside what browsers always show.
_EXPOSED_HEADERS = ("x-request-id", IGNORED_FIELDS_HEADER, "retry-after", "retry-after-ms", "www-authenticate")


def create_app(
    backend: Backend,
    limits: Limits | None = None,
    access: AccessControl | None = None,
    cors_origins: Sequence[str] = (),
    audit_log: AuditLog | None = None,
    metrics: ServerMetrics | None = None,
    root_path: str = "",
    playground: bool = True,
    batching: Batching | None = None,
) -> Starlette:
    """Return the application that serves a backend's model.

    access: the keys that requests need; None: no key. cors_origins: whose pages may send requests from browsers.
    audit_log: gets a record of each request. metrics: count what happens.
    root_path: the prefix below which a proxy in front serves it; see `RootPath`.
    playground: serve the page at /, to everyone: it holds nothing but text that is part of the package.
    batching: files and batches; None refuses them.
    """
    limits = limits or Limits()
    metrics = metrics or ServerMetrics()
    page = PLAYGROUND_FILES if playground else {}
    routes = [*_routes(ServerContext(backend, limits, metrics), batching), *_pages(DOCS_FILES), *_pages(page)]
    names = RouteNames([*(route.path for route in routes), *POLLS])
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RootPath, prefix=root_path),
            *_cors(cors_origins),
            Middleware(Gate, retry_after_s=backend.retry_after_s, metrics=metrics),
            *([] if audit_log is None else [Middleware(Audit, log=audit_log, names=names)]),
            Middleware(RequestLog, names=names, metrics=metrics, quiet=page.keys() - {"/"}),
            Middleware(Envelope, limits=limits, metrics=metrics),
            Middleware(HttpVersions),
            *([] if access is None else [Middleware(Authentication, access=access, public=page.keys())]),
        ],
        exception_handlers={HTTPException: on_http_exception},
    )
    app.router.redirect_slashes = False  # one spelling per path, so that a proxy's rule for it cannot be evaded
    return app


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """Return the middleware that tells browsers whose pages may send requests; none for no origin.

    Keys travel in a header that a page sets, so browsers need not send credentials of theirs.
    """
    if not origins:
        return []
    return [
        Middleware(
            Cors,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    ]


def _routes(context: ServerContext, batching: Batching | None) -> list[Route]:
    versioned = [
        Route("/completions", GenerationEndpoint(context, prepare_completion), methods=["POST"]),
        Route("/chat/completions", GenerationEndpoint(context, prepare_chat), methods=["POST"]),
        Route("/embeddings", GenerationEndpoint(context, prepare_embeddings), methods=["POST"]),
        Route("/responses", GenerationEndpoint(context, prepare_response), methods=["POST"]),
        Route("/messages", GenerationEndpoint(context, prepare_message), methods=["POST"]),
        Route("/messages/count_tokens", count_tokens(context), methods=["POST"]),
        Route("/score", GenerationEndpoint(context, prepare_score), methods=["POST"]),
        Route("/rerank", GenerationEndpoint(context, prepare_rerank), methods=["POST"]),
        Route("/models", list_models(context), methods=["GET"]),
        Route("/models/{id:path}", get_model(context), methods=["GET"]),
        *_batch_routes(context, batching),
    ]
    return [
        *(Route(f"/v1{route.path}", route.endpoint, methods=sorted(route.methods or ())) for route in versioned),
        *versioned,  # for clients whose base URL lacks /v1
        Route("/tokenize", tokenize(context), methods=["POST"]),
        Route("/detokenize", detokenize(context), methods=["POST"]),
        Route("/tokenizer_info", tokenizer_info(context), methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready(context), methods=["GET"]),
        Route("/load", get_load(context), methods=["GET"]),
        Route("/version", get_version, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]


def _batch_routes(context: ServerContext, batching: Batching | None) -> list[Route]:
    def enabled() -> Batching:
        if batching is None:
            raise NotEnabledError("This server keeps no files and batches: its setting 'batches.folder' is not set.")
        return batching

    files, batches = FileEndpoints(context, enabled), BatchEndpoints(context, enabled)
    return [
        Route("/files", files.upload, methods=["POST"]),
        Route("/files", files.list, methods=["GET"]),
        Route("/files/{id}", files.get, methods=["GET"]),
        Route("/files/{id}", files.delete, methods=["DELETE"]),
        Route("/files/{id}/content", files.content, methods=["GET"]),
        Route("/batches", batches.create, methods=["POST"]),
        Route("/batches", batches.list, methods=["GET"]),
        Route("/batches/{id}", batches.get, methods=["GET"]),
        Route("/batches/{id}/cancel", batches.cancel, methods=["POST"]),
    ]


def _pages(contents: Mapping[str, Traversable]) -> list[Route]:
    return [Route(path, page, methods=["GET"]) for path, page in pages(contents).items()]
