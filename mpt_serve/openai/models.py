"""GET /v1/models and /v1/models/{id}, in OpenAI's form, and in Anthropic's for its clients."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.backend import ModelInfo
from mpt_serve.openai.protocol.anthropic_bodies import AnthropicModel, AnthropicModelList
from mpt_serve.openai.protocol.responses import ModelBody, ModelList
from mpt_serve.openai.server_context import ServerContext

__all__ = ["get_model", "list_models"]

Endpoint = Callable[[Request], Awaitable[JSONResponse]]


def list_models(context: ServerContext) -> Endpoint:
    """Return the endpoint that lists the served model."""

    async def endpoint(request: Request) -> JSONResponse:
        model = context.backend.model
        if _is_anthropic(request):
            listed: AnthropicModelList = {
                "data": [_anthropic_model(model)],
                "has_more": False,
                "first_id": model.id,
                "last_id": model.id,
            }
            return JSONResponse(listed)
        models: ModelList = {"object": "list", "data": [model_body(model)]}
        return JSONResponse(models)

    return endpoint


def get_model(context: ServerContext) -> Endpoint:
    """Return the endpoint that describes one model; an unknown id is a 404."""

    async def endpoint(request: Request) -> JSONResponse:
        context.require_model(request.path_params["id"])
        form = _anthropic_model if _is_anthropic(request) else model_body
        return JSONResponse(form(context.backend.model))

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


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _anthropic_model(model: ModelInfo) -> AnthropicModel:
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": datetime.fromtimestamp(model.created, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "max_input_tokens": model.max_model_len or None,
        "max_tokens": model.max_model_len or None,
    }
