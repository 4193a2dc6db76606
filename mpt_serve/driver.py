"""Strictness for a plain `serve run FILE`.

Serve drops unknown keys before it calls `build`, so `build` has to look at the file itself. It runs in a task somewhere
in the cluster; what it knows is its job, and the job table knows the job's driver. Where that driver is a `serve run`
on this very host, its command line and working directory say which file it read. Everywhere else (`serve deploy`,
KubeRay, a driver on another machine) the file is out of reach: only the settings in `args` are checked then, and
`mpt-serve check FILE` is the way to check the rest beforehand.
"""

import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from mpt_serve.configuration.problems import ConfigurationError

__all__ = ["ServeRun", "check_driver_config", "find_serve_run", "serve_run_file"]

logger = logging.getLogger("ray.serve")

_LOG_TRAVEL_S = 3.0  # what a line of this process may take to the driver's terminal


@dataclass(frozen=True)
class ServeRun:
    """A `serve run FILE` on this host: its process id, and the file it read."""

    pid: int
    file: Path


def check_driver_config() -> None:
    """Check the whole file that this application's `serve run` was given, if one is within reach.

    A file with mistakes ends that `serve run`, which would otherwise wait forever for an application that never comes.
    Raises ConfigurationError.
    """
    from mpt_serve.configuration.serve_schema import check_file

    run = find_serve_run()
    if run is None:
        return
    try:
        check_file(str(run.file), here=True)
    except ConfigurationError as error:
        logger.error(error)
        time.sleep(_LOG_TRAVEL_S)
        os.kill(run.pid, signal.SIGTERM)
        raise


def find_serve_run() -> ServeRun | None:
    """Return the `serve run FILE` that is the driver of the calling task's job, None where it is out of reach."""
    if not ray.is_initialized():
        return None
    # `ray.util.state.list_jobs` shows the same table, but asks the dashboard for it, which need not run.
    from ray._private.state import jobs

    job_id = ray.get_runtime_context().get_job_id()
    for job in jobs():
        if job["JobID"] == job_id and job["DriverIPAddress"] == ray.util.get_node_ip_address():
            file = _file_of(job["DriverPid"])
            # A file edited since is not what this `serve run` read, and must not end it.
            if file is not None and file.stat().st_mtime * 1000 < job["StartTime"]:
                return ServeRun(job["DriverPid"], file)
    return None


def _file_of(pid: int) -> Path | None:
    if pid == os.getpid():
        return None  # `serve build` and the like, which read no file
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        working_dir = Path(f"/proc/{pid}/cwd").resolve(strict=True)
    except OSError:  # gone, another user's, or not Linux
        return None
    return serve_run_file(command, working_dir)


def serve_run_file(command: Sequence[str], working_dir: Path) -> Path | None:
    """Return the configuration file of a `serve run` command line, None when it is something else."""
    names = [Path(argument).name for argument in command]
    for position in range(len(command) - 1):
        if names[position] in ("serve", "ray.serve.scripts", "scripts.py") and command[position + 1] == "run":
            return _file_argument(command[position + 2 :], working_dir)
    return None


def _file_argument(arguments: Sequence[str], working_dir: Path) -> Path | None:
    from ray.serve.scripts import run  # the command itself knows which of its options take a value

    parameters = run.make_context("run", list(arguments), resilient_parsing=True).params
    file = working_dir / (parameters["config_or_import_path"] or "")
    return file if file.is_file() else None
