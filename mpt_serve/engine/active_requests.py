"""The requests that the engine has taken and not finished."""

from collections.abc import Iterable, Sequence

from mpt_serve.engine.inbox import Abort
from mpt_serve.engine.outbox import Outbox
from mpt_serve.engine.request import FinishReason, Request
from mpt_serve.engine.scheduler import Scheduler
from mpt_serve.engine.speculative import Drafter
from mpt_serve.engine.step_output import TurnResult


class ActiveRequests:
    """Adds requests to the scheduler, ends them, and keeps their updates until `deliver`.

    Any thread may call `claim`, `release` and `ids`; the engine's thread alone calls the rest.
    """

    def __init__(self, scheduler: Scheduler, drafter: Drafter | None) -> None:
        self._scheduler = scheduler
        self._drafter = drafter
        self._outbox = Outbox()
        # Each access is one indivisible operation. Two threads that race for one id may both get it; nothing but the
        # refusal of duplicates depends on it.
        self._claimed: dict[str, list[Request]] = {}
        self._choices: dict[str, list[Request]] = {}  # those that have not finished, by request id

    def claim(self, request_id: str, choices: list[Request]) -> bool:
        """Reserve an id for a request; False where another one has it."""
        return self._claimed.setdefault(request_id, choices) is choices

    def release(self, request_id: str) -> None:
        """Make an id available again."""
        self._claimed.pop(request_id, None)

    def ids(self) -> list[str]:
        """Return the ids of the requests that have not ended."""
        return list(self._claimed)  # indivisible, too

    def add(self, choices: Sequence[Request]) -> None:
        """Queue a request."""
        self._choices.setdefault(choices[0].request_id, []).extend(choices)
        for request in choices:
            self._scheduler.add(request)

    def abort(self, item: Abort) -> None:
        """End a request, or one choice of it; unknown ones do nothing."""
        choices = self._choices.get(item.request_id, ())
        self._end([request for request in choices if item.index in (None, request.choice_index)], item.reason)

    def take(self, result: TurnResult) -> None:
        """Queue the updates of what a turn of the pipeline brought."""
        for output in result.outputs:
            self._outbox.post_output(output)
            if output.finish_reason is not None:
                self._forget(output.request)
        for failure in result.failures:
            self._outbox.post_end(failure.request, "error", failure.message)
            self._forget(failure.request)

    def end_all(self, reason: FinishReason, message: str | None) -> None:
        """End every request."""
        self._end([*self._scheduler.running, *self._scheduler.waiting], reason, message)

    def deliver(self) -> None:
        """Call the listeners, which may submit, cancel and close. A request whose listener fails is cancelled."""
        for request in self._outbox.deliver():
            self._end(list(request.siblings), "cancelled")

    def _end(self, requests: Iterable[Request], reason: FinishReason, message: str | None = None) -> None:
        for request in requests:
            if request.finish_reason is None:
                self._scheduler.finish(request, reason)
                self._outbox.post_end(request, reason, message)
                self._forget(request)

    def _forget(self, request: Request) -> None:
        if self._drafter is not None:
            self._drafter.forget(request)
        for choices in (request.siblings, self._choices[request.request_id]):
            choices.remove(request)
        if not self._choices[request.request_id]:
            del self._choices[request.request_id]
        if not request.siblings and self._claimed.get(request.request_id) is request.siblings:
            self.release(request.request_id)
