"""Errors as clients see them: `{"error": {"message", "type", "param", "code"}}`, with the status on the class."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from starlette.exceptions import HTTPException

from mpt_serve.errors import BusyError, EngineClosedError, LimitExceededError, MptServeError, RequestError
from mpt_serve.openai.protocol.responses import ErrorBody, LoadingBody

logger = logging.getLogger(__name__)

__all__ = [
    "ERROR_KINDS",
    "ApiError",
    "BodyTimeoutError",
    "ContextLengthError",
    "DeadlineError",
    "HeadersTooLargeError",
    "InternalServerError",
    "InvalidApiKeyError",
    "InvalidValueError",
    "MethodNotAllowedError",
    "MissingHostError",
    "MissingScopeError",
    "ModelNotFoundError",
    "NotEnabledError",
    "NotReadyError",
    "ObjectNotFoundError",
    "RateLimitError",
    "RequestTooLargeError",
    "RouteNotFoundError",
    "ShuttingDownError",
    "UnsupportedMediaTypeError",
    "UnsupportedParameterError",
    "as_api_error",
    "client_sentence",
    "error_body",
    "retry_headers",
]

# Absolute paths, those of this API left out, and addresses of objects.
_PRIVATE = re.compile(r"""(?<![\w.:/])(?:File ")?/(?!v1/)(?:[\w.+@-]+/)+[\w.+@-]*"?| at 0x[0-9a-fA-F]+""")

MAX_MESSAGE_CHARS = 600  # a character takes at most 6 bytes, so every error body stays below 4 KiB


class ApiError(MptServeError):
    """An error of the wire contract. The message never quotes a request's values, only their kinds."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}

    def rename(self, message: str, param: str | None) -> None:
        """Say the same in other words."""
        self.args = (message,)
        self.message, self.param = message, param


class InvalidValueError(ApiError):
    """The body is not a JSON object, or a field's value is not accepted."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class UnsupportedParameterError(InvalidValueError):
    """A field requests something that is not offered."""

    code = "unsupported_parameter"


class ContextLengthError(InvalidValueError):
    """The prompt and `max_tokens` exceed the model's context."""

    code = "context_length_exceeded"


class MissingHostError(ApiError):
    """A request of HTTP/1.1 has no Host header."""

    status, type, code = 400, "invalid_request_error", "missing_host"


class InvalidApiKeyError(ApiError):
    """The server requires an API key, and the request has none or a wrong one."""

    status, type, code = 401, "authentication_error", "invalid_api_key"

    def __init__(self, presented: bool = True) -> None:
        message = "The API key is not valid." if presented else "This server requires an API key."
        fix = "Send a key of this server in the header 'Authorization: Bearer KEY'."
        challenge = 'Bearer error="invalid_token"' if presented else "Bearer"
        super().__init__(f"{message} {fix}", headers={"www-authenticate": challenge})


class MissingScopeError(ApiError):
    """The API key is valid, but not for this endpoint."""

    status, type, code = 403, "permission_error", "insufficient_scope"

    def __init__(self, scope: str = "admin") -> None:
        super().__init__(
            f"This endpoint requires an API key with the scope '{scope}'.",
            headers={"www-authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
        )


class RouteNotFoundError(ApiError):
    """There is no endpoint at this path."""

    status, type, code = 404, "not_found_error", "route_not_found"


class ModelNotFoundError(ApiError):
    """`model` is not the served model's id."""

    status, type, code = 404, "not_found_error", "model_not_found"


class ObjectNotFoundError(ApiError):
    """The owner of the request's key has no file, or no batch, with this id."""

    status, type, code = 404, "not_found_error", "not_found"


class NotEnabledError(ApiError):
    """The server's settings do not offer this endpoint; the message names the setting."""

    status, type, code = 404, "not_found_error", "not_enabled"


class MethodNotAllowedError(ApiError):
    """The path does not accept the method; `Allow` lists those it accepts."""

    status, type, code = 405, "not_found_error", "method_not_allowed"


class BodyTimeoutError(ApiError):
    """The body did not arrive in time; the connection is closed."""

    status, type, code = 408, "invalid_request_error", "body_timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"connection": "close"})


class RequestTooLargeError(ApiError):
    """The body is too large."""

    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMediaTypeError(ApiError):
    """The body is not `application/json` (for files, `multipart/form-data`), not UTF-8 or compressed."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class HeadersTooLargeError(ApiError):
    """The headers are too large."""

    status, type, code = 431, "invalid_request_error", "headers_too_large"


class TemporaryError(ApiError):
    """An error that passes by itself: `retry_after_s` (1 to 120, what clients honour) says when to try again."""

    def __init__(self, message: str, *, retry_after_s: float = 5) -> None:
        super().__init__(message, headers=retry_headers(retry_after_s))


class RateLimitError(TemporaryError):
    """The owner of the API key has used what it may use; other clients are served."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class NotReadyError(TemporaryError):
    """The server as a whole cannot take the request now. loading: how far a model is that loads, for the body."""

    status, type = 503, "server_error"
    CODES: ClassVar[tuple[str, ...]] = ("loading", "overloaded", "shutting_down")

    def __init__(self, message: str, *, code: str = "overloaded", retry_after_s: float = 5) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.code = code
        self.loading: LoadingBody | None = None


class ShuttingDownError(NotReadyError):
    """The server is shutting down; `NotReadyError` with that code."""

    def __init__(self, message: str = "The server is shutting down.", *, retry_after_s: float = 5) -> None:
        super().__init__(message, code="shutting_down", retry_after_s=retry_after_s)


class DeadlineError(ApiError):
    """The request was not finished within the server's time limit."""

    status, type, code = 504, "server_error", "timeout"


class InternalServerError(ApiError):
    """The server failed; its log has the details."""

    status, type, code = 500, "server_error", "internal_error"

    def __init__(self, message: str = "The server failed on this request; its log has the details.") -> None:
        super().__init__(message)


ERROR_KINDS: tuple[type[ApiError], ...] = (
    InvalidValueError,
    UnsupportedParameterError,
    ContextLengthError,
    MissingHostError,
    InvalidApiKeyError,
    MissingScopeError,
    RouteNotFoundError,
    ModelNotFoundError,
    ObjectNotFoundError,
    NotEnabledError,
    MethodNotAllowedError,
    BodyTimeoutError,
    RequestTooLargeError,
    UnsupportedMediaTypeError,
    HeadersTooLargeError,
    RateLimitError,
    InternalServerError,
    NotReadyError,
    DeadlineError,
)


def retry_headers(seconds: float) -> dict[str, str]:
    """Return the headers that say when to send a request again: in whole seconds, and in OpenAI's milliseconds."""
    seconds = min(120.0, max(0.05, seconds))
    return {"retry-after": str(max(1, round(seconds))), "retry-after-ms": str(round(1000 * seconds))}


def as_api_error(error: Exception) -> ApiError:
    """Return any exception as an error of the wire contract. What is not for clients becomes a 500 without details."""
    for kind in type(error).__mro__:
        if kind in _MAPPING:
            return _MAPPING[kind](error)
    logger.error("a request failed", exc_info=error)
    return InternalServerError()


# The one mapping; the most specific class of an error counts.
_MAPPING: Mapping[type, Callable[[Any], ApiError]] = {
    ApiError: lambda error: error,
    EngineClosedError: lambda error: ShuttingDownError(),
    LimitExceededError: lambda error: RateLimitError(client_sentence(str(error)), retry_after_s=error.retry_after_s),
    BusyError: lambda error: NotReadyError(client_sentence(str(error))),
    RequestError: lambda error: InvalidValueError(client_sentence(str(error)), param=error.field),
    HTTPException: lambda error: _refused_by_the_router(error),
}


def _refused_by_the_router(error: HTTPException) -> ApiError:
    """Return the error for a method, or a path, that no route has."""
    allowed = error.headers.get("Allow") if error.headers else None
    if allowed is not None:
        message = f"This path does not accept the method; it accepts {allowed}."
        return MethodNotAllowedError(message, headers={"allow": allowed})
    return RouteNotFoundError("There is no endpoint at this path; GET /openapi.json lists those that there are.")


def client_sentence(text: str) -> str:
    """Return the message of an inner error as a sentence for clients, without paths and addresses of the server."""
    text = _PRIVATE.sub("...", text)
    return text[:1].upper() + text[1:].rstrip(".") + "."


def error_body(error: ApiError) -> ErrorBody:
    """Return the error's JSON body."""
    message = error.message
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[: MAX_MESSAGE_CHARS - 3] + "..."
    body: ErrorBody = {
        "error": {"message": message, "type": error.type, "param": error.param, "code": error.code},
    }
    if isinstance(error, NotReadyError) and error.loading is not None:
        body["loading"] = error.loading
    return body
