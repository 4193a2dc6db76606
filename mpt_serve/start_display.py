"""What `mpt-serve run` shows while its applications start: bars on a terminal, and a line when they are ready."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mpt_serve.configuration.config_file import ConfigFile
from mpt_serve.serve_logs.log_files import LogFiles
from mpt_serve.serve_logs.start_progress import StartProgress

__all__ = ["StartDisplay", "addresses_of", "shown_start"]

_POLL_S = 0.25
_READY = "Ready: the Generator replies."  # what an Ingress logs
_HTTP = {"host": "127.0.0.1", "port": 8000}  # Serve's defaults


@contextmanager
def shown_start(file: str) -> Iterator[None]:
    """Show in a thread how the start of a file's applications goes on, until they are ready or the context ends.

    Where this process shares no machine with a node of Ray's, or Serve has another configuration, nothing is shown.
    """
    folder = _log_folder()
    if folder is None:
        yield
        return
    display = StartDisplay(LogFiles(folder), addresses_of(ConfigFile(file).data))
    ended = threading.Event()
    thread = threading.Thread(target=display.run, args=[ended], name="start display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def addresses_of(config: Mapping[str, Any]) -> list[str]:
    """Return the URLs of a configuration's applications, one for each."""
    http = {**_HTTP, **(config.get("http_options") or {})}
    host = "127.0.0.1" if http["host"] in ("0.0.0.0", "::") else http["host"]
    base = f"http://{f'[{host}]' if ':' in host else host}:{http['port']}"
    prefixes = [str(own.get("route_prefix") or "/").rstrip("/") for own in config.get("applications") or ()]
    return [base + prefix for prefix in prefixes]


def _log_folder() -> Path | None:
    """Return the folder of Serve's logs on this machine; None if no node of the cluster runs here."""
    from ray._private import worker

    node = worker._global_node
    folder = None if node is None else Path(node.get_session_dir_path()) / "logs" / "serve"
    return folder if folder is not None and folder.is_dir() else None


class StartDisplay:
    """The state of a start, by the log files of its deployments.

    Records that the files have already are of earlier starts. addresses: of the applications; each has an Ingress that
    says when it is ready.
    """

    def __init__(self, files: LogFiles, addresses: list[str], console: Console | None = None) -> None:
        files.read()
        self._files = files
        self._addresses = addresses
        self._console = console or Console()
        self._begun = time.monotonic()
        self._generators: dict[str, StartProgress] = defaultdict(StartProgress)
        self._ready: set[str] = set()

    def run(self, ended: threading.Event) -> None:
        """Show the start until it is complete, or `ended` is set."""
        with self._bars() as bars:
            while not self.advance() and not ended.wait(_POLL_S):
                self._show(bars)
            self._show(bars)
        if not self.is_complete:
            return
        seconds = time.monotonic() - self._begun
        text = "; ".join(filter(None, (own.summary() for own in self._generators.values())))
        print(f"mpt-serve: ready after {seconds:.0f} s at {', '.join(self._addresses)} ({text})", flush=True)
        if self._console.is_terminal:
            for address in self._addresses:
                print(f"  API {address}/v1   reference {address}/docs   Ctrl-C drains and ends", flush=True)

    @property
    def is_complete(self) -> bool:
        """Return whether every application is ready."""
        return len(self._ready) >= len(self._addresses)

    def advance(self) -> bool:
        """Read what is new in the logs, and return whether the start is complete."""
        for record in self._files.read():
            if record.deployment == "Generator":
                self._generators[record.replica].take(record.message)
            elif record.deployment == "Ingress" and record.message == _READY:
                self._ready.add(record.application)
        return self.is_complete

    def _bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def _show(self, bars: Progress) -> None:
        """Bring the bars up to date: sums over the Generators that start here."""
        states = list(self._generators.values())
        for name, unit, done, total in (
            ("Reading the checkpoint", "MiB", sum(s.read for s in states), sum(s.checkpoint for s in states)),
            ("Loading weights", "MiB", sum(s.loaded for s in states), sum(s.weights for s in states)),
            ("Compiling", "programs", sum(s.compiled for s in states), sum(s.programs for s in states)),
        ):
            if total:
                task = next((own.id for own in bars.tasks if own.description == name), None)
                task = bars.add_task(name, unit=unit, total=total) if task is None else task
                bars.update(task, completed=done, total=total)
