"""News about requests on their way to those who asked."""

import logging
from collections import deque
from collections.abc import Iterator

from mpt_serve.engine.pipeline import StepOutput
from mpt_serve.engine.request import Delta, FinishReason, Request, ignore_delta

logger = logging.getLogger(__name__)


class Outbox:
    """Keeps news until it is time to call listeners. For one thread."""

    def __init__(self) -> None:
        self._items: deque[tuple[Request, Delta]] = deque()

    def post(self, request: Request, taken: StepOutput | None = None, message: str | None = None) -> None:
        """Queue what a step brought a request, or that it has ended."""
        prompt_logprobs = None
        if request.wants_prompt_logprobs and not request.prompt_is_told and taken is not None:
            request.prompt_is_told = True
            prompt_logprobs = tuple(request.prompt_logprobs)
        stopped = request.finish_reason == "stop" and taken is not None  # else its reader has found the stop
        delta = Delta(
            token_ids=taken.token_ids if taken else (),
            finish_reason=request.finish_reason,
            stop_reason=request.output_ids[-1] if stopped else None,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=request.num_cached or 0,
            message=message,
            index=request.choice_index,
            logprobs=taken.logprobs if taken else None,
            prompt_logprobs=prompt_logprobs,
        )
        self._items.append((request, delta))

    def deliver(self) -> Iterator[Request]:
        """Call the listeners, and yield each request whose listener has failed; what is posted meanwhile goes too."""
        while self._items:
            request, delta = self._items.popleft()
            if not _tell(request, delta):
                yield request


def refuse(request: Request, reason: FinishReason, message: str | None) -> None:
    """Tell a request's listener at once that nothing comes of it. Any thread."""
    _tell(request, Delta((), reason, None, len(request.prompt_ids), message=message, index=request.choice_index))


def _tell(request: Request, delta: Delta) -> bool:
    """Call a request's listener; False, and never again, when it fails."""
    try:
        request.on_delta(delta)
    except Exception:
        logger.exception("the listener of request %s failed; the request is cancelled", request.request_id)
        request.on_delta = ignore_delta
        return False
    return True
