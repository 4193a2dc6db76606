"""GET /v1/models and /v1/models/{id}."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.backend import ModelInfo
from mpt_serve.openai.protocol.responses import ModelBody, ModelList
from mpt_serve.openai.server_context import ServerContext

__all__ = ["get_model", "list_models"]

Endpoint = Callable[[Request], Awaitable[JSONResponse]]


def list_models(context: ServerContext) -> Endpoint:
    """Return the endpoint that lists the served model."""

    async def endpoint(request: Request) -> JSONResponse:
        models: ModelList = {"object": "list", "data": [model_body(context.backend.model)]}
        return JSONResponse(models)

    return endpoint


def get_model(context: ServerContext) -> Endpoint:
    """Return the endpoint that describes one model; an unknown id is a 404."""

    async def endpoint(request: Request) -> JSONResponse:
        context.require_model(request.path_params["id"])
        return JSONResponse(model_body(context.backend.model))

    return endpoint


def model_body(model: ModelInfo) -> ModelBody:
    """Return OpenAI's model object, with the context length and the checkpoint that clients look for."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "mpt_serve",
        "root": model.root or model.id,
        "parent": None,
        "max_model_len": model.max_model_len or None,
    }
