"""Output that takes long to write: it has its name when it is complete, and what was interrupted is continued."""

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IDENTITY_DIGITS = 16


@contextmanager
def partial_output(target: Path, identity: str) -> Iterator[Path]:
    """Yield a folder beside `target` to write to; what it holds at the end becomes `target`, or goes into it.

    A folder of an earlier call with the same `identity`, hex digits of everything that the output depends on, is
    yielded again with what it holds; those of other identities are removed. On ValueError nothing stays: the output is
    wrong. On any other exception the folder stays, to be continued.

    A single file with the name of `target` in the folder becomes `target`; otherwise `target` is a folder, in which
    entries of the same names are replaced.
    """
    folder = target.with_name(f".{target.name}.{identity[:_IDENTITY_DIGITS]}.partial")
    for other in target.parent.glob(f".{glob.escape(target.name)}.{'?' * _IDENTITY_DIGITS}.partial"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
        _publish(folder, target)
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _publish(folder: Path, target: Path) -> None:
    single = folder / target.name
    if single.is_file():
        single.replace(target)
    else:
        target.mkdir(exist_ok=True)
        for entry in sorted(folder.iterdir(), key=lambda path: path.name == "config.json"):  # without it no model yet
            if entry.is_dir():
                shutil.rmtree(target / entry.name, ignore_errors=True)
            entry.replace(target / entry.name)
    shutil.rmtree(folder)
