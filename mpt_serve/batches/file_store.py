"""Files that clients have uploaded, and the results of their batches: each owner sees its own alone."""

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from model.checkpoint.atomic_write import sync
from mpt_serve.batches.durable import read_json, write_bytes, write_json
from mpt_serve.errors import RequestError

__all__ = ["FileStore", "StorageFullError", "StoredFile", "owner_folder"]

_ID = re.compile(r"file-[0-9a-f]{24}")
_ORPHAN_S = 3600.0  # after which what has no description is what a crash has left


class StorageFullError(RequestError):
    """An owner has as many files, or bytes in them, as it may have."""


@dataclass(frozen=True)
class StoredFile:
    """The description of a file. Times in seconds since the epoch; expires_at: None for never."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None

    @staticmethod
    def new_id() -> str:
        """Return an id that nobody can guess."""
        return f"file-{secrets.token_hex(12)}"


def owner_folder(folder: Path, owner: str) -> Path:
    """Return where an owner's files and batches are: by a digest, as names may hold anything."""
    return folder / "owners" / hashlib.sha256(owner.encode()).hexdigest()[:32]


class FileStore:
    """The files in a folder, which several processes may use at the same time. Methods block, and raise OSError.

    A file is there from when its description is written, after its content, until that is removed, before its content.

    owner: who may see a file. max_files, max_bytes: of one owner.
    """

    def __init__(self, folder: Path, max_files: int, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._clock = clock

    def add(
        self, owner: str, filename: str, purpose: str, content: bytes, expires_after_s: int | None = None
    ) -> StoredFile:
        """Store a file and return its description. Raises StorageFullError."""
        files = self.all_of(owner)
        if len(files) >= self._max_files:
            raise StorageFullError(f"there are {len(files)} files, and may be {self._max_files}: delete some")
        size = sum(file.bytes for file in files)
        if size + len(content) > self._max_bytes:
            free = max(0, self._max_bytes - size)
            raise StorageFullError(f"the file has {len(content)} bytes, and {free} more may be stored: delete others")
        file_id, folder = StoredFile.new_id(), self._folder_of(owner)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(folder / f"{file_id}.jsonl", content)
        return self._describe(owner, file_id, filename, purpose, expires_after_s)

    def add_link(
        self, owner: str, file_id: str, source: Path, filename: str, purpose: str, expires_after_s: int | None = None
    ) -> StoredFile:
        """Make a file that exists elsewhere on the same file system one of the owner's. Idempotent."""
        with contextlib.suppress(FileExistsError):
            os.link(source, self.path(owner, file_id))
        return self._describe(owner, file_id, filename, purpose, expires_after_s)

    def get(self, owner: str, file_id: str) -> StoredFile | None:
        """Return a file's description; None if the owner has no such file."""
        if not _ID.fullmatch(file_id):
            return None
        content = read_json(self._folder_of(owner) / f"{file_id}.json")
        file = None if content is None else StoredFile(**content)
        return None if file is None or self._is_expired(file) else file

    def all_of(self, owner: str) -> list[StoredFile]:
        """Return an owner's files, the newest first."""
        found = (self.get(owner, path.stem) for path in self._folder_of(owner).glob("file-*.json"))
        return sorted((file for file in found if file), key=lambda file: (file.created_at, file.id), reverse=True)

    def delete(self, owner: str, file_id: str) -> bool:
        """Remove a file; return False if the owner has no such file."""
        if self.get(owner, file_id) is None:
            return False
        self._remove(self._folder_of(owner), file_id)
        return True

    def path(self, owner: str, file_id: str) -> Path:
        """Return where the content of a file is; its id has been checked by `get`."""
        return self._folder_of(owner) / f"{file_id}.jsonl"

    def sweep(self) -> None:
        """Remove what has expired, and what a crash has left."""
        for folder in self._folder.glob("owners/*/files"):
            for path in folder.glob("file-*.json"):
                content = read_json(path)
                if content is not None and self._is_expired(StoredFile(**content)):
                    self._remove(folder, path.stem)
            for path in self._orphans(folder):
                path.unlink(missing_ok=True)

    def _orphans(self, folder: Path) -> Iterator[Path]:
        for path in folder.iterdir():
            if path.suffix != ".json" and not (folder / f"{path.stem}.json").exists():
                with contextlib.suppress(FileNotFoundError):
                    if self._clock() - path.stat().st_ctime > _ORPHAN_S:
                        yield path

    def _remove(self, folder: Path, file_id: str) -> None:
        (folder / f"{file_id}.json").unlink(missing_ok=True)
        (folder / f"{file_id}.jsonl").unlink(missing_ok=True)
        sync(folder)

    def _describe(
        self, owner: str, file_id: str, filename: str, purpose: str, expires_after_s: int | None
    ) -> StoredFile:
        now = int(self._clock())
        expires_at = None if expires_after_s is None else now + expires_after_s
        size = self.path(owner, file_id).stat().st_size
        file = StoredFile(file_id, filename, purpose, size, now, expires_at)
        write_json(self._folder_of(owner) / f"{file_id}.json", asdict(file))
        return file

    def _folder_of(self, owner: str) -> Path:
        return owner_folder(self._folder, owner) / "files"

    def _is_expired(self, file: StoredFile) -> bool:
        return file.expires_at is not None and self._clock() >= file.expires_at
