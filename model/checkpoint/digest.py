"""What a checkpoint is, in a few hex digits: a digest of every byte, read once and remembered.

Samples of the bytes alone would not do: fine-tuning may change one row of one matrix. Nor do times of change, which a
copy of the same bytes does not share. So samples and times only find the digest of files that were read before.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.checkpoint.atomic_write import whole_file

__all__ = ["MEMO_SUFFIX", "content_digest", "fingerprint"]

MEMO_SUFFIX = ".sha256"
_SAMPLES, _SAMPLE_BYTES = 64, 2**15
_READERS = 4  # files read at once


def fingerprint(files: Sequence[Path]) -> str:
    """Hex digits from names, sizes, times of change and samples: the same only where nobody has changed the files."""
    return hashlib.sha256(json.dumps([_look_of(path) for path in files]).encode()).hexdigest()


def content_digest(files: Sequence[Path], mark: str, folder: Path) -> str:
    """Hex digits from the names and all bytes of the files, whose `fingerprint` is `mark`.

    folder: where the digest is remembered, or left alone if that is not possible.
    """
    memo = folder / f"{mark}{MEMO_SUFFIX}"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        digest = memo.read_text("ascii")
        if re.fullmatch("[0-9a-f]{64}", digest):
            return digest
    with ThreadPoolExecutor(_READERS) as pool:
        digests = list(pool.map(_digest_of, files))
    made_of = [[path.name, digest] for path, digest in zip(files, digests, strict=True)]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(memo, shared=True) as path:
            path.write_text(digest, "ascii")
    return digest


def _look_of(path: Path) -> list[str | int]:
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for i in range(_SAMPLES + 1):
            file.seek(max(status.st_size - _SAMPLE_BYTES, 0) * i // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return [path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest.hexdigest()]


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
