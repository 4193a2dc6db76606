"""`mpt-serve logs`: what the replicas of a server on this machine have logged."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.log_records import LogFilter, LogRecord, parse_records
from mpt_serve.commands.ray_sessions import latest_session, running_sessions

__all__ = ["Level", "LogFiles", "logs"]

_POLL_S = 0.25
_COLORS = {"warning": 33, "error": 31, "critical": 31, "debug": 2}


class Level(StrEnum):
    """Levels of records, the lowest first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what is logged from now on")] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, help="the last N records alone; all by default")
    ] = None,
    deployment: Annotated[
        str | None, typer.Option("--deployment", "-d", help="Ingress, Tokenizer, Generator, controller or proxy")
    ] = None,
    level: Annotated[Level | None, typer.Option("--level", "-l", help="the lowest level")] = None,
    request: Annotated[
        str | None,
        typer.Option("--request", "-r", metavar="ID", help="of one request, as the header X-Request-Id has it"),
    ] = None,
    session: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="of a Ray session; by default that of the running server")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object for each record")] = False,
) -> None:
    """Show the logs of a server on this machine: all its deployments', in the order of time.

    Without a running server they are those of the last one. In a cluster each node has those of its replicas.
    """
    folder = _session() if session is None else session
    files = LogFiles(folder / "logs" / "serve")
    wanted = LogFilter(None if level is None else level.value, deployment, request)
    found = [record for record in files.read() if wanted.takes(record)]
    show = _printer(as_json)
    for record in found if lines is None else found[max(0, len(found) - lines) :]:
        show(record)
    while follow:
        time.sleep(_POLL_S)
        for record in filter(wanted.takes, files.read()):
            show(record)


def _session() -> Path:
    running = running_sessions()
    if len(running) > 1:
        folders = "\n".join(f"  --session {folder}" for folder in running)
        raise CommandError(f"several servers run; choose one of\n{folders}", status=2)
    if running:
        return running[0]
    last = latest_session()
    if last is None:
        raise CommandError("no server of this user runs on this machine, and none has left logs; name a --session")
    print(f"mpt-serve logs: no server runs; these are the logs of the last one, in {last}", file=sys.stderr)
    return last


class LogFiles:
    """The log files in a folder, read from where the last reading ended. Raises CommandError if there is no folder."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise CommandError(
                f"there is no folder '{folder}'; --session must be a Ray session that runs Serve", status=2
            )
        self._folder = folder
        self._ends: dict[int, int] = {}  # by inode, as files are renamed when they are full

    def read(self) -> list[LogRecord]:
        """Return the records that were written since the last call, in the order of time."""
        records = [record for file in sorted(self._folder.glob("*.log*")) for record in parse_records(self._new(file))]
        return sorted(records, key=lambda record: record.time)

    def _new(self, path: Path) -> Iterator[str]:
        """Yield the complete lines that are new in a file."""
        try:
            with path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._ends.get(inode, 0))
                data = file.read()
        except OSError:  # it was renamed meanwhile
            return
        complete, newline, _ = data.rpartition(b"\n")
        self._ends[inode] = self._ends.get(inode, 0) + len(complete) + len(newline)
        yield from complete.decode("utf-8", "replace").split("\n") if complete else ()


def _printer(as_json: bool) -> Callable[[LogRecord], None]:
    in_color = sys.stdout.isatty()

    def show(record: LogRecord) -> None:
        text = json.dumps(record.as_json(), ensure_ascii=False) if as_json else record.text
        color = _COLORS.get(record.level) if in_color and not as_json else None
        print(text if color is None else f"\x1b[{color}m{text}\x1b[0m", flush=True)

    return show
