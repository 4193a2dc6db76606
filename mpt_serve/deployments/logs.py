"""Logging through Serve's logger."""

import logging

__all__ = ["log_through_serve"]


def log_through_serve() -> None:
    """Send the records of the `mpt_serve` and `model` loggers to the handlers of Serve's replica logger.

    A replica configures only the logger `ray.serve`; without this, lines below WARNING would be lost.
    """
    serve_logger = logging.getLogger("ray.serve")
    for name in ("mpt_serve", "model"):
        logger = logging.getLogger(name)
        logger.handlers = list(serve_logger.handlers)
        logger.setLevel(serve_logger.level or logging.INFO)
        logger.propagate = not logger.handlers
