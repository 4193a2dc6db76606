"""Output that is complete or not there, and that goes on where it was interrupted."""

from pathlib import Path

import pytest

from model.checkpoint.partial_output import partial_output

THIS, OTHER = "0123456789abcdef", "fedcba9876543210"


def write(target: Path, identity: str, error: BaseException | None = None) -> list[str]:
    """Add a file to the output, and return the names of those that were there."""
    with partial_output(target, identity) as folder:
        found = sorted(path.name for path in folder.iterdir())
        (folder / f"{len(found)}.safetensors").write_text(identity)
        if error is not None:
            raise error
        (folder / "config.json").write_text("{}")
    return found


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_interrupted_output_is_continued(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out"
    with pytest.raises(type(error)):
        write(target, THIS, error)
    assert not target.exists()
    assert write(target, THIS) == ["0.safetensors"]
    assert sorted(path.name for path in target.iterdir()) == ["0.safetensors", "1.safetensors", "config.json"]
    assert list(tmp_path.iterdir()) == [target]


def test_output_of_another_identity_is_not_mixed_in(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"):
        write(tmp_path / "out", OTHER, OSError("full"))
    assert write(tmp_path / "out", THIS) == []
    assert (tmp_path / "out" / "0.safetensors").read_text() == THIS
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_wrong_output_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"):
        write(tmp_path / "out", THIS, ValueError("wrong"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("old")
    with partial_output(tmp_path / "m.gguf", THIS) as folder:
        (folder / "m.gguf").write_text("new")
        assert (tmp_path / "m.gguf").read_text() == "old"
    assert (tmp_path / "m.gguf").read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]
