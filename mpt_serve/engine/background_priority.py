"""The priority of a thread while it computes what nobody waits for."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["BackgroundPriority"]


class BackgroundPriority:
    """Lets all other threads have the core on which one thread computes in the background.

    Linux runs a thread with the policy SCHED_IDLE where no other thread needs the core, and moves others there as if
    nothing ran on it. To leave that policy again a process needs an RLIMIT_NICE of 20 or CAP_SYS_NICE. Without these,
    or with another policy or system, the thread keeps its policy, and offers its core to those that wait for the same
    one when it has computed a step.

    Belongs to the thread that enters `lowered` first, but for `restore`.
    """

    def __init__(self) -> None:
        self._thread = 0
        self._policy: int | None = None  # to return to; None: the thread keeps its policy
        self._lowered = False

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Have the lowest priority while entered: for calls that compute without the interpreter's lock alone.

        With that lock all other threads of this process would wait until the thread has a core.
        """
        if not self._thread:
            self._thread = threading.get_native_id()
            self._policy = _policy_to_return_to()
        if self._policy is None:
            yield
            if hasattr(os, "sched_yield"):
                os.sched_yield()
            return
        self._lowered = True
        _set_policy(self._thread, os.SCHED_IDLE)
        try:
            yield
        finally:
            self._lowered = False
            _set_policy(self._thread, self._policy)

    def restore(self) -> None:
        """Give the thread its own priority back: somebody waits for it now. Any thread."""
        if self._lowered and self._policy is not None:
            with suppress(OSError):  # it has ended
                _set_policy(self._thread, self._policy)


def _policy_to_return_to() -> int | None:
    """Return the calling thread's policy, if that is an ordinary one that a thread may return to from SCHED_IDLE."""
    if not hasattr(os, "SCHED_IDLE"):
        return None
    policy = os.sched_getscheduler(0)
    if policy not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return None
    returned = threading.Event()

    def leave_and_return() -> None:
        with suppress(OSError):
            _set_policy(0, os.SCHED_IDLE)
            _set_policy(0, policy)
            returned.set()

    trial = threading.Thread(target=leave_and_return)
    trial.start()
    trial.join()
    return policy if returned.is_set() else None


def _set_policy(thread: int, policy: int) -> None:
    """Set a thread's policy by its id, 0 for the calling one. Raises OSError."""
    os.sched_setscheduler(thread, policy, os.sched_param(0))
