"""The audit log's chain."""

import errno
import hashlib
import json
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from mpt_serve.access import audit_log
from mpt_serve.access.audit_log import AuditedFile, AuditError, AuditLog, check_audit_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A log of five records."""
    log = AuditLog(tmp_path / "logs" / "audit.jsonl")
    for number in range(5):
        log.write({"request_id": f"r{number}", "status": 200})
    log.close()
    return tmp_path / "logs" / "audit.jsonl"


def test_an_unbroken_log(file: Path) -> None:
    lines = file.read_bytes().splitlines()
    assert check_audit_file(file) == AuditedFile(5, hashlib.sha256(lines[-1]).hexdigest())
    assert stat.S_IMODE(file.stat().st_mode) & 0o137 == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["request_id"] for record in records] == ["r0", "r1", "r2", "r3", "r4"]
    assert len({record["previous"] for record in records}) == 5


def test_an_empty_log(tmp_path: Path) -> None:
    AuditLog(tmp_path / "a").close()
    assert check_audit_file(tmp_path / "a").records == 0


@pytest.mark.parametrize("change", ["edited", "removed", "inserted", "swapped", "first removed"])
def test_what_is_changed_later_shows(file: Path, change: str) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    if change == "edited":
        lines[2] = lines[2].replace(b"200", b"401")
    elif change == "removed":
        del lines[3]
    elif change == "inserted":
        lines.insert(3, lines[1])
    elif change == "swapped":
        lines[2], lines[3] = lines[3], lines[2]
    else:
        del lines[0]
    file.write_bytes(b"".join(lines))
    wrong = {"swapped": 3, "first removed": 1}.get(change, 4)
    with pytest.raises(AuditError, match=f"line {wrong}: does not follow the line before it"):
        check_audit_file(file)


@pytest.mark.parametrize("line", [b"text", b"[]", b"{}", b"\xff"])
def test_other_files(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a").write_bytes(line + b"\n")
    with pytest.raises(AuditError, match="line 1: not a record"):
        check_audit_file(tmp_path / "a")


def test_a_file_is_never_continued(file: Path) -> None:
    with pytest.raises(FileExistsError):
        AuditLog(file)


class FullDisk:
    """Stands for `os.pwrite`: writes wait for `go`; the first one fails, the second one writes a part of its bytes."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.writes = 0
        self._pwrite = os.pwrite

    def __call__(self, descriptor: int, line: bytes, offset: int) -> int:
        self.go.wait(60)
        self.writes += 1
        if self.writes == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._pwrite(descriptor, line[:20] if self.writes == 2 else line, offset)


def test_records_that_are_lost_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And where a part of a record was written, the records after it are separate lines."""
    monkeypatch.setattr(audit_log, "_MAX_PENDING", 4)
    disk = FullDisk()
    monkeypatch.setattr(os, "pwrite", disk)
    log = AuditLog(tmp_path / "a")
    log.write({"n": 0})
    while not log._records.empty():  # until the thread has taken it
        pass
    for number in range(1, 8):  # four wait, three are lost
        log.write({"n": number})
    with caplog.at_level(logging.ERROR):
        disk.go.set()
        log.close()
    records = [json.loads(line) for line in (tmp_path / "a").read_bytes().splitlines()]
    assert [(record["n"], record.get("lost")) for record in records] == [(2, 5), (3, None), (4, None)]
    assert caplog.text.count("cannot be written") <= 1
    assert check_audit_file(tmp_path / "a").records == 3
