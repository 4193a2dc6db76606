"""Errors that cross packages: one tree.

`MptServeError` is the root of everything that this package raises on purpose, `RequestError` of what is wrong with one
request. `openai/errors.py` maps the tree to the errors of the HTTP API.
"""

__all__ = ["BusyError", "EngineClosedError", "LimitExceededError", "MptServeError", "RequestError"]


class MptServeError(Exception):
    """An error of this package; its message is written for whoever can remove the cause."""


class RequestError(MptServeError, ValueError):
    """A request is refused; the message names what is wrong with it and what would be accepted.

    field: of the HTTP API's request, where the error belongs to one whoever raises it.
    """

    field: str | None = None


class BusyError(RequestError):
    """The engine cannot take the request at this moment; asked again later, it may."""


class EngineClosedError(RequestError):
    """The engine takes no requests: it was closed, or one of its steps failed."""


class LimitExceededError(RequestError):
    """The owner of an API key has used what it may use; again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
