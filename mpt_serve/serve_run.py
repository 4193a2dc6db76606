"""`serve run FILE` that ends when an application cannot start, where Serve's own waits for it forever."""

import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatus
from ray.serve.scripts import run as serve_run

from mpt_serve.graceful_run import Interrupted, drain_and_shut_down, interrupts
from mpt_serve.start_display import shown_start

__all__ = ["failure_of", "run_file"]

_POLL_S = 0.5
_OWN_LOOP = {"--blocking", "--non-blocking", "-r", "--reload"}  # options with which Serve's command decides when to end
_RUNTIME_ENV = ("runtime_env", "runtime_env_json", "working_dir")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): (?P<text>.+)$", re.MULTILINE)


def run_file(file: str, options: Sequence[str]) -> int:
    """Run a Serve configuration until the process is stopped, and return its exit status.

    options: of `serve run`; with `--reload` Serve itself handles signals, and ends at once. 1 is returned, after one
    message, when an application of the file cannot start.
    """
    context = serve_run.make_context("serve run", [file, *options])
    own_loop = bool(_OWN_LOOP & set(options))
    if not own_loop:
        context.params["blocking"] = False
    _start_ray(context.params)
    context.params["address"] = None  # Ray runs
    with interrupts():
        failure = None
        try:
            serve_run.invoke(context)
            if own_loop:
                return 0
            with shown_start(file):
                failure = _first_failure()
            print(f"mpt-serve: {failure}", file=sys.stderr)
        except SystemExit as stopped:  # Serve has printed why, and may exit with 0
            return int(stopped.code or not own_loop)
        except Interrupted:
            pass
        drain_and_shut_down()
    return 0 if failure is None else 1


def _start_ray(options: Mapping[str, Any]) -> None:
    """Start Ray, or connect to it, as `serve run` would with these options; it then leaves that as it is."""
    sys.path.insert(0, options["app_dir"])  # Ray passes it on to its processes
    runtime_env = parse_runtime_env_args(**{key: options[key] for key in _RUNTIME_ENV})
    ray.init(address=options["address"], namespace="serve", runtime_env=runtime_env)


def _first_failure() -> str:
    """Wait until an application cannot start, and return why; once all have started, wait until a signal raises.

    What is deployed later does not end this process.
    """
    started: set[str] = set()
    while True:
        applications = _applications()
        for name, application in applications.items():
            if application.status == ApplicationStatus.RUNNING:
                started.add(name)
            failure = failure_of(name, application)
            if failure is not None and name not in started:
                return failure
        if applications and started >= applications.keys():
            _wait_for_signal()
        time.sleep(_POLL_S)


def _wait_for_signal() -> None:
    while True:
        signal.pause()


def _applications() -> Mapping[str, ApplicationStatusOverview]:
    applications: Mapping[str, ApplicationStatusOverview] = serve.status().applications
    return applications


def failure_of(name: str, application: ApplicationStatusOverview) -> str | None:
    """Return why an application cannot start, without the tracebacks in Serve's messages; None if it may still."""
    if application.status != ApplicationStatus.DEPLOY_FAILED:
        return None
    reasons = [
        f"{deployment}: {_cause(state.message)}"
        for deployment, state in application.deployments.items()
        if state.status in (DeploymentStatus.DEPLOY_FAILED, DeploymentStatus.UNHEALTHY)
    ]
    reason = "; ".join(reasons) or _cause(application.message)
    return f"the application '{name}' cannot start: {reason}"


def _cause(message: str) -> str:
    """Return the text of the exception that a traceback ends with, or else the message after Serve's first line."""
    texts = [match["text"] for match in _EXCEPTION.finditer(message)]
    if "Traceback" in message and texts:
        return texts[-1].strip()
    return message.strip().partition("failed with exception:\n")[2].strip() or message.strip()
