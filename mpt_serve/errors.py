"""Errors that cross packages."""

__all__ = ["BusyError", "EngineClosedError", "RequestError"]


class RequestError(ValueError):
    """The engine refuses a request; the message names what is wrong with it and what would be accepted."""


class BusyError(RequestError):
    """The engine cannot take the request at this moment; asked again later, it may."""


class EngineClosedError(RequestError):
    """The engine takes no requests: it was closed, or one of its steps failed."""
