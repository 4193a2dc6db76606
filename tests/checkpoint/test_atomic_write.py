"""Files that replace others when they are complete."""

from pathlib import Path

import pytest

from model.checkpoint.atomic_write import atomic_write


@pytest.mark.parametrize("mode", [None, 0o640])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_file_is_replaced_at_the_end(tmp_path: Path, mode: int | None, on_disk: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path, mode, on_disk) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert mode is None or path.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]


def interrupt(path: Path, mode: int | None) -> None:
    with atomic_write(path, mode) as temporary:
        temporary.write_text("new")
        raise RuntimeError("interrupted")


@pytest.mark.parametrize("mode", [None, 0o640])
def test_an_error_changes_nothing(tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"):
        interrupt(path, mode)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_with_a_mode_several_may_write_what_only_they_can_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path, 0o644) as first, atomic_write(path, 0o644) as second:
        assert {name.stat().st_mode & 0o777 for name in (first, second)} == {0o600}
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which was complete last
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_mode_what_an_interrupted_process_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    temporary.write_text("left by a process that was killed")
    with atomic_write(path) as again:
        assert again == temporary
        again.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
