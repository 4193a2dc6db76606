"""Serve's threads, set up for tokens.

By default a replica runs our code on one thread and Serve's on another, which costs each token a change of threads, and
puts a queue without end between engine and client. Ours never blocks the loop, so it can share Serve's: a token costs
about half the CPU time on its way, and the engine's deltas are merged while a client is behind.
"""

import os
from typing import Any

__all__ = ["ONE_LOOP", "replica_runtime_env"]

ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}


def replica_runtime_env() -> dict[str, Any]:
    """Return the runtime environment of every replica: nothing where the nodes were started with `ONE_LOOP`.

    A replica with a runtime environment of its own cannot use the processes that Ray keeps ready, so it starts later.
    """
    return {} if ONE_LOOP.items() <= os.environ.items() else {"runtime_env": {"env_vars": ONE_LOOP}}
