"""Errors in the form of the API that a request's path belongs to."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

from mpt_serve.openai.errors import ApiError, as_api_error, error_body
from mpt_serve.openai.protocol.anthropic_bodies import AnthropicError, AnthropicErrorDetails
from mpt_serve.openai.sse import DONE, event

__all__ = ["anthropic_error", "broken_stream", "error_of_path", "error_response", "is_anthropic", "on_http_exception"]

# In front of the application, behind any prefix.
_ANTHROPIC_ENDS = ("/messages", "/messages/count_tokens", "/messages/batches")

_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(error: ApiError, request_id: str | None = None) -> AnthropicError:
    """Return the error in the form of Anthropic's API, with `param` and `code` as everywhere here."""
    own = error_body(error)["error"]
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    details: AnthropicErrorDetails = {
        "type": kind,
        "message": own["message"],
        "param": own["param"],
        "code": own["code"],
    }
    return {"type": "error", "error": details, "request_id": request_id}


def error_of_path(error: ApiError, path: str, request_id: str | None = None) -> Mapping[str, object]:
    """Return the error's JSON body for a request with this path."""
    return anthropic_error(error, request_id) if is_anthropic(path) else error_body(error)


def error_response(error: ApiError, scope: Scope) -> JSONResponse:
    """Return the error as a response, headers such as `Retry-After` included."""
    body = error_of_path(error, scope["path"], _request_id(scope))
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def broken_stream(error: ApiError, path: str) -> bytes:
    """Return what ends a stream that has lost the process that wrote it."""
    return event(anthropic_error(error), "error") if is_anthropic(path) else event(error_body(error)) + DONE


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Return the response to what the router itself refuses."""
    return error_response(as_api_error(error), request.scope)


def is_anthropic(path: str) -> bool:
    """Return whether a path belongs to Anthropic's API, as far as its end says."""
    return path.endswith(_ANTHROPIC_ENDS)


def _request_id(scope: Scope) -> str | None:
    own: str | None = scope.get("state", {}).get("request_id")
    sent = (value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id")
    return own or next(sent, None)
