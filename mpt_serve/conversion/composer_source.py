"""A Composer checkpoint alone, as a folder: with the config and the tokenizer that it holds."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.checkpoint.composer_texts import composer_texts
from model.checkpoint.folder import find_weights
from model.config.config_files import has_config

__all__ = ["composer_folder"]


@contextmanager
def composer_folder(source: str) -> Iterator[str]:
    """Yield the source of a conversion; for a .pt file without a config.json beside it, a folder with what it holds.

    source: as users name it, a folder, a file or a hub id. The folder exists until the end.
    Raises CheckpointError where the file holds no config.
    """
    file = _training_file(Path(source).expanduser())
    if file is None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="mpt-serve-") as folder:
        for name, text in composer_texts(file).items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        (Path(folder) / file.name).symlink_to(file.resolve())
        yield folder


def _training_file(path: Path) -> Path | None:
    if path.is_dir() and not has_config(path):
        found = find_weights(path)
        return found if found is not None and found.suffix == ".pt" else None
    return path if path.suffix == ".pt" and path.is_file() else None
