"""Logging through Serve's logger, without the text of clients."""

import logging
import re
import traceback

from ray.exceptions import RayTaskError

from mpt_serve.errors import RequestError
from mpt_serve.openai.errors import ApiError
from mpt_serve.text.chat_template import ChatTemplateError

__all__ = ["ClientTextFilter", "hide_client_text", "log_through_serve", "traceback_without_messages"]

_REFUSALS = (RequestError, ChatTemplateError, ApiError)  # the faults of requests; their responses name them
_FRAME = re.compile(r'^\s*File ".*", line \d+, in .*$', re.MULTILINE)


def log_through_serve() -> None:
    """Send the records of the `mpt_serve` and `model` loggers to the handlers of Serve's replica logger.

    A replica configures only the logger `ray.serve`; without this, lines below WARNING would be lost.
    """
    hide_client_text()
    serve_logger = logging.getLogger("ray.serve")
    for name in ("mpt_serve", "model"):
        logger = logging.getLogger(name)
        logger.handlers = list(serve_logger.handlers)
        logger.setLevel(serve_logger.level or logging.INFO)
        logger.propagate = not logger.handlers


def hide_client_text() -> None:
    """Let nothing that clients wrote into this process's logs above DEBUG; see `ClientTextFilter`."""
    serve_logger = logging.getLogger("ray.serve")
    for target in (serve_logger, logging.getLogger("asyncio"), *serve_logger.handlers):
        if not any(isinstance(own, ClientTextFilter) for own in target.filters):
            target.addFilter(ClientTextFilter())


class ClientTextFilter(logging.Filter):
    """Keeps the text of clients out of logs, unless the level is DEBUG.

    Exceptions may quote a request: of a traceback the frames and the exceptions' types are logged, not the messages.
    Serve logs every call of a method; the requests are logged by the Ingress, once each.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record, and take away what it must not show."""
        if logging.getLogger("ray.serve").isEnabledFor(logging.DEBUG):
            return True
        if getattr(record, "serve_access_log", False):
            return False
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            if record.name == "ray.serve" and isinstance(error, _REFUSALS):
                return False
            record.exc_info, record.exc_text = None, traceback_without_messages(error)
        if record.name == "asyncio":  # its second line shows a task with its exception and arguments
            record.msg, record.args = record.getMessage().partition("\n")[0], ()
        return True


def traceback_without_messages(error: BaseException) -> str:
    """Return the frames and types of an exception and of those that led to it, the first one first."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = [
            f'  File "{f.filename}", line {f.lineno}, in {f.name}' for f in traceback.extract_tb(current.__traceback__)
        ]
        if isinstance(current, RayTaskError):  # a text with the frames of another process
            frames += [f"  {line.strip()}" for line in _FRAME.findall(current.traceback_str)]
        parts.insert(0, "\n".join([*frames, f"{type(current).__module__}.{type(current).__qualname__}"]))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(parts) + "\n(the messages are logged at level DEBUG, as they may quote requests)"
