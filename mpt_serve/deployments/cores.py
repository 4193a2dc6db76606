"""How the processes that carry tokens share cores with the kernels that compute them."""

import os
from contextlib import suppress

__all__ = ["leave_cores_to_kernels"]


def leave_cores_to_kernels() -> None:
    """Have the calling thread wait for a core when it is woken, rather than take one from whatever runs there.

    Where cores are few, each token that wakes an Ingress or a proxy would otherwise stop one of the threads that
    compute a step, and all others wait for that one. A thread that waits for its turn, a few milliseconds at most,
    finds several tokens and passes them on together, which costs hardly more than one. Its share of the cores is the
    same, and where a core is free it runs at once. Threads that it starts do as it does. Linux alone has this policy.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
