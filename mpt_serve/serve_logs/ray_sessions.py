"""The folders in which Ray keeps the logs of servers on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["latest_session", "running_sessions"]

_LOGS = Path("logs") / "serve"
_OPTION = "--session_dir="  # of the process that each of Ray's nodes has


def running_sessions() -> list[Path]:
    """Return the session folders of this user's Ray nodes that run on this machine and have logs of Serve.

    Where RAY_TMPDIR is set, as for `mpt-serve run`, only those in it.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    folders = {folder for folder in _sessions_of_processes() if (folder / _LOGS).is_dir()}
    return sorted(folder for folder in folders if chosen is None or folder.is_relative_to(chosen))


def latest_session() -> Path | None:
    """Return the newest session folder with logs of Serve where Ray keeps them by default; None if there is none."""
    root = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
    folders = [folder for folder in root.glob("session_2*") if (folder / _LOGS).is_dir()]
    return max(folders, default=None)  # their names begin with the time


def _sessions_of_processes() -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.getuid():
                continue
            program, *arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        if Path(program).name == "raylet":
            yield from (Path(option.removeprefix(_OPTION)) for option in arguments if option.startswith(_OPTION))
