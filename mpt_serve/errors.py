"""Errors that cross packages."""

__all__ = ["BusyError", "EngineClosedError", "LimitExceededError", "RequestError"]


class RequestError(ValueError):
    """The engine refuses a request; the message names what is wrong with it and what would be accepted."""


class BusyError(RequestError):
    """The engine cannot take the request at this moment; asked again later, it may."""


class EngineClosedError(RequestError):
    """The engine takes no requests: it was closed, or one of its steps failed."""


class LimitExceededError(RequestError):
    """The owner of an API key has used what it may use; again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
