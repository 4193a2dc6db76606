"""`mpt-serve logs`: what the replicas of a server on this machine have logged."""

import json
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mpt_serve.commands.failure import CommandError
from mpt_serve.serve_logs.log_files import LogFiles
from mpt_serve.serve_logs.log_records import LogFilter, LogRecord
from mpt_serve.serve_logs.ray_sessions import latest_session, running_sessions

__all__ = ["Level", "logs"]

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
    try:
        files = LogFiles(folder / "logs" / "serve")
    except FileNotFoundError as error:
        raise CommandError(f"{error}; --session must be a Ray session that runs Serve", status=2) from error
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


def _printer(as_json: bool) -> Callable[[LogRecord], None]:
    in_color = sys.stdout.isatty()

    def show(record: LogRecord) -> None:
        text = json.dumps(record.as_json(), ensure_ascii=False) if as_json else record.text
        color = _COLORS.get(record.level) if in_color and not as_json else None
        print(text if color is None else f"\x1b[{color}m{text}\x1b[0m", flush=True)

    return show
