"""The records in Serve's log files."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["LogFilter", "LogRecord", "parse_records"]

LEVELS = ("debug", "info", "warning", "error", "critical")

_LINE = re.compile(
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})"
    r" (?P<component>\S+) (?P<replica>\S+)(?: (?P<request>\S+))? -- (?P<message>.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class LogRecord:
    """One record. text: its lines as they are in the file, without the last line break.

    deployment: also `controller` and `proxy`, which are no deployments and belong to no application.
    request_id: empty where it belongs to none.
    """

    time: str
    level: str
    application: str
    deployment: str
    replica: str
    request_id: str
    message: str
    text: str

    def as_json(self) -> dict[str, str]:
        """Return the fields of the record."""
        names = ("time", "level", "application", "deployment", "replica", "request_id", "message")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class LogFilter:
    """Which records to show: None shows all. level: the lowest one."""

    level: str | None = None
    deployment: str | None = None
    request_id: str | None = None

    def takes(self, record: LogRecord) -> bool:
        """Return whether to show a record."""
        if self.level is not None and LEVELS.index(record.level) < LEVELS.index(self.level):
            return False
        if self.deployment is not None and record.deployment.lower() != self.deployment.lower():
            return False
        return self.request_id is None or self.request_id == record.request_id or self.request_id in record.text


def parse_records(lines: Iterable[str]) -> Iterator[LogRecord]:
    """Yield the records in lines of one file; lines that begin none, as of a traceback, belong to the one before."""
    current: LogRecord | None = None
    for line in lines:
        line = line.rstrip("\n")
        begun = _parse(line)
        if begun is not None:
            if current is not None:
                yield current
            current = begun
        elif current is not None:
            message, text = f"{current.message}\n{line}", f"{current.text}\n{line}"
            current = replace(current, message=message, text=text)
    if current is not None:
        yield current


def _parse(line: str) -> LogRecord | None:
    match = _LINE.fullmatch(line)
    if match is not None:
        # Of a replica, a component is the application's and the deployment's name.
        application, _, deployment = match["component"].rpartition("_")
        level, request = match["level"].lower(), match["request"] or ""
        return LogRecord(
            match["time"], level, application, deployment, match["replica"], request, match["message"], line
        )
    if not line.startswith("{"):
        return None
    try:
        fields: Any = json.loads(line)
        level = str(fields["levelname"]).lower()
        time, message = str(fields["asctime"]), str(fields["message"])
    except (ValueError, KeyError, TypeError):
        return None
    deployment = str(fields.get("deployment") or fields.get("component_name") or "")
    replica = str(fields.get("replica") or fields.get("component_id") or "")
    if level not in LEVELS:
        return None
    application = str(fields.get("application") or "")
    return LogRecord(time, level, application, deployment, replica, str(fields.get("request_id") or ""), message, line)
