"""Environment variables of Ray's processes: one event loop per replica, our middleware in Serve's HTTP proxy, loopback.

By default a replica runs our code on one thread and Serve's on another, which costs a thread switch per token and puts
an unbounded queue between engine and client. Our code never blocks, so it can share Serve's loop: that halves the CPU
time per streamed token, and deltas are merged while a client reads slowly.
"""

import os
import secrets
from typing import Any

__all__ = ["LINK_KEY_VARIABLE", "LOOPBACK", "ONE_LOOP", "PERIODS", "PROXY_GUARD", "new_link_key", "replica_runtime_env"]

ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}

# Serve's proxies inherit their node's environment: this works if it is set when the node starts.
PROXY_GUARD = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "mpt_serve.deployments.proxy_guard:middlewares",
    "RAY_SERVE_PROXY_USE_GRPC": "1",  # from proxies to Ingresses; a request costs less CPU time than by Ray's objects
    # Of a response that is no stream: by default 4 MiB, and Serve's proxy fails on a larger one.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}

# Of what Serve does also while nothing happens. Each turn of its controller asks Ray for the state of all nodes; at the
# default of 0.1 s they take 4 % of a core. Each replica, and each handle to one, gives its counters to Ray, which
# exports them every 10 s; the default is 0.1 s, too.
PERIODS = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25", "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000"}

# Of a Ray that no other node joins: all its processes listen on 127.0.0.1 alone, as they do on Windows and macOS, whose
# name the variable has. By default they listen on every address of the machine.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

LINK_KEY_VARIABLE = "MPT_SERVE_LINK_KEY"


def new_link_key() -> dict[str, str]:
    """Return a new key by which Ingresses know Serve's proxies, as an environment variable that all nodes must share.

    Without it, responses go through Serve.
    """
    return {LINK_KEY_VARIABLE: secrets.token_hex(32)}


def replica_runtime_env() -> dict[str, Any]:
    """Return the runtime environment of every replica: empty if the nodes were started with `ONE_LOOP`.

    A replica with its own runtime environment cannot use Ray's prestarted processes, so it starts later.
    """
    return {} if ONE_LOOP.items() <= os.environ.items() else {"runtime_env": {"env_vars": ONE_LOOP}}
