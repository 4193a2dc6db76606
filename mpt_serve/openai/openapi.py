"""GET /openapi.json: the API as an OpenAPI document, made of the models that requests and responses are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from starlette.requests import Request
from starlette.responses import JSONResponse

from mpt_serve.openai.health import program_version
from mpt_serve.openai.protocol import responses
from mpt_serve.openai.protocol.anthropic_bodies import AnthropicError, MessageBody, MessageEvent, TokenCount
from mpt_serve.openai.protocol.anthropic_request import CountTokensRequest, MessagesRequest
from mpt_serve.openai.protocol.batches import (
    BatchBody,
    BatchList,
    BatchRequest,
    FileBody,
    FileDeletion,
    FileList,
    FileUpload,
)
from mpt_serve.openai.protocol.chat import ChatCompletionRequest
from mpt_serve.openai.protocol.completions import CompletionRequest
from mpt_serve.openai.protocol.embeddings import EmbeddingRequest
from mpt_serve.openai.protocol.response_bodies import ResponseBody, ResponseEvent
from mpt_serve.openai.protocol.response_request import ResponseRequest
from mpt_serve.openai.protocol.scoring import RerankRequest, ScoreRequest
from mpt_serve.openai.protocol.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from mpt_serve.openai.root_path import public_root

__all__ = ["OPERATIONS", "openapi"]

_REF = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    request: the type of its body, of which `example` is one. chunk: of a stream's events, beside `[DONE]`. error: of
    the bodies of errors. query: names of its parameters there.
    """

    method: str
    path: str
    summary: str
    response: Any = None
    request: Any = None
    chunk: Any = None
    error: Any = responses.ErrorBody
    example: Any = None
    media_type: str = "application/json"
    request_type: str = "application/json"
    query: Sequence[str] = ()

    @property
    def kinds(self) -> dict[str, Any]:
        """Return the types of its bodies."""
        kinds = {"response": self.response, "request": self.request, "chunk": self.chunk, "error": self.error}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    @property
    def name(self) -> str:
        """Return an id for code generators: `post_v1_completions`."""
        words = "".join(char if char.isalnum() else " " for char in self.path).split()
        return "_".join([self.method, *words])


_VERSIONED = (
    Operation(
        "post",
        "/completions",
        "Text that continues one prompt or several",
        responses.Completion,
        CompletionRequest,
        responses.CompletionChunk,
        example={"prompt": "Once upon a time", "max_tokens": 32},
    ),
    Operation(
        "post",
        "/chat/completions",
        "The assistant's next message",
        responses.ChatCompletion,
        ChatCompletionRequest,
        responses.ChatCompletionChunk,
        example={"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32},
    ),
    Operation(
        "post",
        "/responses",
        "The assistant's next message and calls, without state",
        ResponseBody,
        ResponseRequest,
        ResponseEvent,
        example={"input": "Hello!", "max_output_tokens": 32},
    ),
    Operation(
        "post",
        "/messages",
        "The assistant's next message, in Anthropic's API",
        MessageBody,
        MessagesRequest,
        MessageEvent,
        AnthropicError,
        {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32},
    ),
    Operation(
        "post",
        "/messages/count_tokens",
        "The number of tokens of a conversation",
        TokenCount,
        CountTokensRequest,
        error=AnthropicError,
        example={"messages": [{"role": "user", "content": "Hello!"}]},
    ),
    Operation(
        "post",
        "/embeddings",
        "Embeddings of texts: the model's hidden states",
        responses.Embeddings,
        EmbeddingRequest,
        example={"input": ["The sky is blue.", "The sea is deep."]},
    ),
    Operation(
        "post",
        "/score",
        "The likelihood of texts after others",
        responses.Scores,
        ScoreRequest,
        example={"text_1": "The sky is", "text_2": [" blue.", " loud."]},
    ),
    Operation(
        "post",
        "/rerank",
        "Documents in the order of their relevance",
        responses.Rerank,
        RerankRequest,
        example={"query": "Where do whales live?", "documents": ["Whales live in the sea.", "The sky is blue."]},
    ),
    Operation("get", "/models", "The served model, as a list", responses.ModelList),
    Operation("get", "/models/{id}", "The served model", responses.ModelBody),
    Operation(
        "post",
        "/files",
        "A file for a batch",
        FileBody,
        FileUpload,
        example={"file": "in.jsonl", "purpose": "batch"},
        request_type="multipart/form-data",
    ),
    Operation("get", "/files", "The client's files", FileList, query=("purpose", "limit", "after", "order")),
    Operation("get", "/files/{id}", "What is known of a file", FileBody),
    Operation("delete", "/files/{id}", "A file is deleted", FileDeletion),
    Operation("get", "/files/{id}/content", "A file's bytes", str, media_type="application/jsonl"),
    Operation(
        "post",
        "/batches",
        "A batch of the requests in a file",
        BatchBody,
        BatchRequest,
        example={"input_file_id": "file-0123456789abcdef01234567", "endpoint": "/v1/completions"},
    ),
    Operation("get", "/batches", "The client's batches", BatchList, query=("limit", "after")),
    Operation("get", "/batches/{id}", "How far a batch is", BatchBody),
    Operation("post", "/batches/{id}/cancel", "A batch ends", BatchBody),
)

OPERATIONS = (
    *(replace(operation, path=f"/v1{operation.path}") for operation in _VERSIONED),
    *(replace(operation, summary=f"{operation.summary}: as /v1{operation.path}") for operation in _VERSIONED),
    Operation(
        "post",
        "/tokenize",
        "The ids of a text or a conversation",
        responses.TokenizeResponse,
        TokenizeRequest | TokenizeChatRequest,
        example={"prompt": "Hello!"},
    ),
    Operation(
        "post",
        "/detokenize",
        "The text of ids",
        responses.DetokenizeResponse,
        DetokenizeRequest,
        example={"tokens": [1, 2, 3]},
    ),
    Operation("get", "/tokenizer_info", "The tokenizer's special tokens and chat template", responses.TokenizerInfo),
    Operation("get", "/health", "200 while the process lives", responses.Status),
    Operation("get", "/ready", "200 while there are replicas that serve requests, else 503", responses.Status),
    Operation("get", "/load", "How much this replica works on", responses.Load),
    Operation("get", "/version", "The program's version", responses.Version),
    Operation("get", "/stats", "Each Generator replica's counters", dict[str, Any]),
    Operation("get", "/metrics", "The same for Prometheus", str, media_type="text/plain"),
    Operation("get", "/openapi.json", "This document", dict[str, Any]),
    Operation("get", "/docs", "This document as a page", str, media_type="text/html"),
    Operation("get", "/", "A page to try the model, unless the settings switch it off", str, media_type="text/html"),
)


async def openapi(request: Request) -> JSONResponse:
    """Return the document, whose server is the address that the client has used."""
    return JSONResponse({**_document(), "servers": [{"url": public_root(request.scope) or "/"}]})


@cache
def _document() -> Mapping[str, Any]:
    kinds = [kind for operation in OPERATIONS for kind in operation.kinds.values()]
    inputs: list[tuple[int, JsonSchemaMode, TypeAdapter[Any]]] = [
        (number, "validation", TypeAdapter(kind)) for number, kind in enumerate(kinds)
    ]
    found, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REF)
    schemas = (found[number, "validation"] for number in range(len(kinds)))
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        own = {name: next(schemas) for name in operation.kinds}
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, own)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mpt_serve",
            "version": program_version(),
            "description": "MPT models behind an OpenAI-style API.",
        },
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {})},
    }


def _event(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of one server-sent event whose data is JSON, or `[DONE]`, as OpenAPI 3.2 models events."""
    described = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": described}, "required": ["data"]}


def _operation(operation: Operation, schemas: Mapping[str, Any]) -> dict[str, Any]:
    content = {operation.media_type: {"schema": schemas["response"]}}
    if "chunk" in schemas:
        content["text/event-stream"] = {"schema": _event(schemas["chunk"])}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            "200": {"description": operation.summary, "content": content},
            "default": {"description": "An error", "content": {"application/json": {"schema": schemas["error"]}}},
        },
    }
    if "request" in schemas:
        body = {"schema": schemas["request"], "example": operation.example}
        described["requestBody"] = {"required": True, "content": {operation.request_type: body}}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in operation.query
    ]
    if "{id}" in operation.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        described["parameters"] = parameters
    return described
