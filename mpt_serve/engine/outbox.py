"""Updates on requests, on their way to those who submitted them."""

import logging
from collections import deque
from collections.abc import Iterator

from mpt_serve.engine.request import Delta, FinishReason, Request, ignore_delta
from mpt_serve.engine.step_output import StepOutput

logger = logging.getLogger(__name__)


class Outbox:
    """Keeps updates until it is time to call listeners. For one thread."""

    def __init__(self) -> None:
        self._items: deque[tuple[Request, Delta]] = deque()

    def post_output(self, output: StepOutput) -> None:
        """Queue what a step brought a request."""
        request = output.request
        prompt_logprobs = None
        if request.wants_prompt_logprobs and not request.prompt_logprobs_sent:
            request.prompt_logprobs_sent = True
            prompt_logprobs = tuple(request.prompt_logprobs)
        delta = Delta(
            token_ids=output.token_ids,
            finish_reason=output.finish_reason,
            stop_reason=output.token_ids[-1] if output.finish_reason == "stop" else None,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=request.num_cached or 0,
            index=request.choice_index,
            logprobs=output.logprobs,
            prompt_logprobs=prompt_logprobs,
            hidden_states=None if request.pooled is None else request.pooled.result(),
        )
        self._items.append((request, delta))

    def post_end(self, request: Request, reason: FinishReason, message: str | None) -> None:
        """Queue the end of a request that no step ended."""
        self._items.append((request, _end_delta(request, reason, message)))

    def deliver(self) -> Iterator[Request]:
        """Call the listeners, and yield each request whose listener has failed; includes what is posted meanwhile."""
        while self._items:
            request, delta = self._items.popleft()
            if not _call_listener(request, delta):
                yield request


def refuse(request: Request, reason: FinishReason, message: str | None) -> None:
    """Call the listener of a request that the engine never started. Any thread."""
    _call_listener(request, _end_delta(request, reason, message))


def _end_delta(request: Request, reason: FinishReason, message: str | None) -> Delta:
    return Delta(
        token_ids=(),
        finish_reason=reason,
        stop_reason=None,
        num_prompt_tokens=len(request.prompt_ids),
        num_cached_tokens=request.num_cached or 0,
        message=message,
        index=request.choice_index,
    )


def _call_listener(request: Request, delta: Delta) -> bool:
    """Call a request's listener; False, and never again, when it fails."""
    try:
        request.on_delta(delta)
    except Exception:
        logger.exception("the listener of request %s failed; the request is cancelled", request.request_id)
        request.on_delta = ignore_delta
        return False
    return True
