"""Removing keys from a file that people edit and servers read."""

import os
from pathlib import Path

import pytest

from mpt_serve.access.api_key import KeyLineError, new_key, record_of
from mpt_serve.access.key_file import read_keys, remove_keys

KEYS = [new_key(name)[1] for name in ("alice", "bob", "alice")]
TEXT = f"# staff\n{KEYS[0].line()}\r\n\n  {KEYS[1].line()}\n# end\n{KEYS[2].line()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(TEXT.encode())
    path.chmod(0o640)
    return path


def test_other_lines_permissions_and_links_stay(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    assert remove_keys(link, ["bob"]) == [KEYS[1]]
    assert read_keys(file) == [KEYS[0], KEYS[2]]
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.read_text().splitlines()[::3] == ["# staff", "# end"]
    assert remove_keys(file, [KEYS[0].id, KEYS[2].id]) == [KEYS[0], KEYS[2]]
    assert read_keys(file) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "link"]


def test_names_that_no_line_has_change_nothing(file: Path) -> None:
    with pytest.raises(KeyLineError, match="no key has the id or the name eve, mallory"):
        remove_keys(file, ["alice", "mallory", "eve"])
    assert file.read_bytes() == TEXT.encode()


def test_mistakes_are_named_with_their_line(file: Path) -> None:
    file.write_text(f"{KEYS[0].line()}\nwrong\n")
    with pytest.raises(KeyLineError, match="keys, line 2"):
        remove_keys(file, ["alice"])
    file.write_bytes(b"\xff")
    with pytest.raises(KeyLineError, match="is not UTF-8"):
        read_keys(file)


def test_a_file_that_cannot_be_replaced_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: str, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space"):
        remove_keys(file, ["alice"])
    assert file.read_bytes() == TEXT.encode()
    assert [path.name for path in file.parent.iterdir()] == ["keys"]


def test_the_owner_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned: list[tuple[int, int]] = []
    status = file.stat()
    monkeypatch.setattr(os, "geteuid", lambda: status.st_uid + 1)  # as if an operator changed the server's file
    monkeypatch.setattr(os, "chown", lambda _, uid, gid: owned.append((uid, gid)))
    remove_keys(file, ["bob"])
    assert owned == [(status.st_uid, status.st_gid)]


def test_what_is_no_key_cannot_be_stated() -> None:
    with pytest.raises(ValueError, match="a key has the form"):
        record_of("sk-other", "alice")
