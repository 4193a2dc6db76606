"""How long requests in the background may go without anything on a server that always has something else to do."""

from bisect import insort

from mpt_serve.engine.request import Request
from mpt_serve.engine.step_rows import StepRows

__all__ = ["Patience"]


class Patience:
    """Has the first request in the background served as if somebody waited for it, once none has had a row for long.

    It is one request at a time, and then the steps are counted from 0 again. So those that somebody waits for share
    their steps with one more request at most, and a step grows by a part of its prompt once in that many steps.

    steps: with rows of others alone; None for no end of them.
    """

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self._without = 0
        self._before = 0  # the last step
        self._served: Request | None = None

    def end(self, running: list[Request], waiting: list[Request]) -> None:
        """Move the request whose turn it is, if there is one, to its new place in its list. Both are in order."""
        unfinished = self._served is not None and self._served.finish_reason is None
        if self._steps is None or self._without < self._steps or unfinished:
            return
        for requests in (running, waiting):
            place = next((i for i, request in enumerate(requests) if request.background), None)
            if place is not None:
                self._served = requests.pop(place)
                self._served.patient = False
                insort(requests, self._served, key=lambda request: request.order)
                self._without = 0
                return

    def scheduled(self, step: StepRows, running: list[Request], waiting: list[Request]) -> None:
        """Count a step that was scheduled."""
        self._before = self._without
        if not any(requests and requests[-1].background for requests in (running, waiting)):  # they are the last
            self._without = 0
        elif step.rows:
            self._without = 0 if any(row.request.background for row in step.rows) else self._without + 1

    def undo(self) -> None:
        """Count the last step as one without: it was abandoned."""
        self._without = self._before + 1
