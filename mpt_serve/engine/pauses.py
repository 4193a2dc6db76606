"""Steps in which all requests pause but those that are expedited."""

from collections.abc import Sequence

from mpt_serve.engine.request import Request

__all__ = ["Pauses"]


class Pauses:
    """Decides which steps are for expedited requests alone: those with a prompt of one, but never two in a row.

    active: whether the next step is one.
    """

    def __init__(self) -> None:
        self.active = False

    def plan(self, running: Sequence[Request], *, admits: bool) -> None:
        """Decide about the next step. admits: whether an expedited request waits that can be admitted."""
        pausing = any(not request.params.expedited and not request.background for request in running)
        hurries = admits or any(request.hurries for request in running)
        self.active = pausing and hurries and not self.active

    def leave_out(self, request: Request) -> bool:
        """Return whether a request has no part in the next step."""
        return self.active and not request.params.expedited
