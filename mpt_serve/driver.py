"""The configuration file of a plain `serve run FILE`, found so that it is validated as strictly as by `mpt-serve run`.

`serve run` drops unknown keys before any code of ours runs and passes on `args` alone, so the file itself is the only
evidence of a typo outside `args`, and the driver's command line is the only evidence of the file.

`build` runs in a task of the driver's Ray job. If the job table says that the driver runs on this host, its command
line and working directory identify the file. Otherwise (`serve deploy`, KubeRay, a driver on another host) only the
settings in `args` are validated here, and `mpt-serve check FILE` validates the rest beforehand.
"""

import logging
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

__all__ = ["ServeRun", "end_serve_run", "find_serve_run", "first_serve_run", "serve_run_file"]

logger = logging.getLogger("ray.serve")

_REPLICA_PREFIX = "SERVE_REPLICA::"  # of the names of Serve's replicas
_LOG_DELAY_S = 3.0  # until a log line of this process appears in the driver's terminal, at most


@dataclass(frozen=True)
class ServeRun:
    """A `serve run FILE` on this host: its process id, and its file."""

    pid: int
    file: Path


def first_serve_run() -> ServeRun | None:
    """Return the `serve run FILE` on this host that waits for its first application; None if there is none.

    While replicas run, mistakes in what is deployed next must not end it, and its replicas with it.
    """
    run = find_serve_run()
    if run is None:
        return None
    names = [str(actor["name"]) for actor in ray.util.list_named_actors(all_namespaces=True)]
    return None if any(name.startswith(_REPLICA_PREFIX) for name in names) else run


def end_serve_run(run: ServeRun, error: Exception) -> None:
    """End a `serve run`, which would otherwise wait forever for an application that never starts; log why."""
    logger.error(error)
    time.sleep(_LOG_DELAY_S)
    os.kill(run.pid, signal.SIGTERM)


def find_serve_run() -> ServeRun | None:
    """Return the `serve run FILE` that is the driver of the calling task's job; None if there is none on this host."""
    if not ray.is_initialized():
        return None
    # `ray.util.state.list_jobs` shows the same table, but needs a running dashboard.
    from ray._private.state import jobs

    job_id = ray.get_runtime_context().get_job_id()
    for job in jobs():
        if job["JobID"] == job_id and job["DriverIPAddress"] == ray.util.get_node_ip_address():
            file = _file_of(job["DriverPid"])
            # A file that was edited later is not what this `serve run` read, and must not end it.
            if file is not None and file.stat().st_mtime * 1000 < job["StartTime"]:
                return ServeRun(job["DriverPid"], file)
    return None


def _file_of(pid: int) -> Path | None:
    if pid == os.getpid():
        return None  # commands such as `serve build`, which read no file
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        working_dir = Path(f"/proc/{pid}/cwd").resolve(strict=True)
    except OSError:  # it has ended, belongs to another user, or this is not Linux
        return None
    return serve_run_file(command, working_dir)


def serve_run_file(command: Sequence[str], working_dir: Path) -> Path | None:
    """Return the configuration file of a `serve run` command line; None if the command is another one."""
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
