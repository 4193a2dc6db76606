"""The identity of a checkpoint in a few hex digits: a digest of every byte, computed once and remembered.

Samples of the bytes would not suffice: fine-tuning may change one row of one matrix. Nor do modification times, which a
copy of the same bytes does not share. So samples and times only look up the digest of files that were read before.
"""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.checkpoint.atomic_write import atomic_write
from model.checkpoint.load_progress import LoadProgress

MEMO_SUFFIX = ".sha256"

_SAMPLES, _SAMPLE_BYTES = 64, 2**15
_READERS = 4  # files read at once
_PIECE_BYTES = 2**22


def fingerprint(files: Sequence[Path]) -> str:
    """Return hex digits from names, sizes, modification times and samples: equal only where the files are unchanged."""
    return hashlib.sha256(json.dumps([_sample(path) for path in files]).encode()).hexdigest()


def content_digest(files: Sequence[Path], mark: str, folder: Path, progress: bool | None = False) -> str:
    """Return hex digits from the names and all bytes of the files, whose `fingerprint` is `mark`.

    folder: where the digest is stored, where that is possible. progress: as `LoadProgress` has it.
    """
    memo = folder / f"{mark}{MEMO_SUFFIX}"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        digest = memo.read_text("ascii")
        if re.fullmatch("[0-9a-f]{64}", digest):
            return digest
    with LoadProgress(sum(path.stat().st_size for path in files), progress, "Reading the checkpoint") as bar:
        one_at_a_time = threading.Lock()

        def count(size: int) -> None:
            with one_at_a_time:
                bar.update(size)

        with ThreadPoolExecutor(_READERS) as pool:
            digests = list(pool.map(lambda path: _digest_of(path, count), files))
    parts = [[path.name, digest] for path, digest in zip(files, digests, strict=True)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(memo, mode=0o644) as path:
            path.write_text(digest, "ascii")
    return digest


def _sample(path: Path) -> list[str | int]:
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for i in range(_SAMPLES + 1):
            file.seek(max(status.st_size - _SAMPLE_BYTES, 0) * i // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return [path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest.hexdigest()]


def _digest_of(path: Path, count: Callable[[int], None]) -> str:
    """Return the digest of a file; count: takes the bytes read since the last call."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            count(size)
    return digest.hexdigest()
