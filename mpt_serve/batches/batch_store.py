"""Batches on disk: what was created, how far it is, and who may see it."""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from model.checkpoint.atomic_write import sync
from mpt_serve.batches.durable import read_json, write_bytes, write_json
from mpt_serve.batches.file_store import FileStore, StoredFile, owner_folder
from mpt_serve.batches.result_files import ResultFiles
from mpt_serve.errors import LimitExceededError

__all__ = ["ENDED", "Batch", "BatchState", "BatchStore", "TooManyBatchesError"]

ENDED = frozenset({"failed", "completed", "expired", "cancelled"})
_ID = re.compile(r"batch_[0-9a-f]{24}")
_RETRY_AFTER_S = 30.0  # when one of them may have ended
_LEFT_S = 3600.0  # after which what a crash has left of a creation is removed


class TooManyBatchesError(LimitExceededError):
    """An owner has as many batches that have not ended as it may have."""


@dataclass(frozen=True)
class Batch:
    """What a batch was created with. Times in seconds since the epoch.

    output_file_id, error_file_id: of the files that it will have. outputs_expire_after_s: None for never.
    """

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    output_file_id: str
    error_file_id: str
    metadata: Mapping[str, str] | None = None
    outputs_expire_after_s: int | None = None


@dataclass
class BatchState:
    """How far a batch is.

    times: when it entered each status, by the status. total, completed, failed: requests. errors: why it has failed,
    as (code, message).
    """

    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)


class BatchStore:
    """The batches in a folder, which several processes may use at the same time. Methods block, and raise OSError.

    Each batch has a folder with `batch.json`, which never changes; `state.json`, which whoever holds the lock of its
    `ResultFiles` writes; `cancel`, which anyone creates; and until it has ended the input and the results. A file in
    `active/` names each one that has not ended.

    max_unfinished: batches of one owner that have not ended. max_requests: of one batch. max_ended: batches of one
    owner that are kept.
    """

    def __init__(
        self,
        folder: Path,
        files: FileStore,
        max_unfinished: int,
        max_requests: int,
        max_ended: int = 1000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.files = files
        self._folder = folder
        self.max_requests = max_requests
        self._max_unfinished = max_unfinished
        self._max_ended = max_ended
        self._clock = clock

    def create(
        self,
        owner: str,
        file: StoredFile,
        endpoint: str,
        completion_window: str,
        window_s: int,
        metadata: Mapping[str, str] | None = None,
        outputs_expire_after_s: int | None = None,
    ) -> Batch:
        """Create a batch of an input file. It keeps the content, whatever becomes of the file.

        Raises TooManyBatchesError, and FileNotFoundError where the file was deleted meanwhile.
        """
        unfinished = len(list(self._active.glob(f"{self._owner(owner).name}.*")))
        if unfinished >= self._max_unfinished:
            message = f"{unfinished} batches have not ended; there may be {self._max_unfinished}: cancel some, or wait"
            raise TooManyBatchesError(message, _RETRY_AFTER_S)
        self._forget_oldest(owner)
        now = int(self._clock())
        ids = (StoredFile.new_id(), StoredFile.new_id())
        batch = Batch(
            f"batch_{secrets.token_hex(12)}", owner, endpoint, file.id, completion_window, now, now + window_s, *ids,
            metadata, outputs_expire_after_s,
        )  # fmt: skip
        folder = self.folder(batch)
        folder.mkdir(parents=True, mode=0o700)
        os.link(self.files.path(owner, file.id), folder / "input.jsonl")
        write_bytes(self._marker(batch), b"")  # before what makes it visible, so that each visible one is worked on
        write_json(folder / "batch.json", asdict(batch))
        return batch

    def get(self, owner: str, batch_id: str) -> Batch | None:
        """Return a batch; None if the owner has no such batch."""
        if not _ID.fullmatch(batch_id):
            return None
        content = read_json(self._owner(owner) / "batches" / batch_id / "batch.json")
        return None if content is None else Batch(**content)

    def all_of(self, owner: str) -> list[Batch]:
        """Return an owner's batches, the newest first."""
        found = (self.get(owner, path.name) for path in (self._owner(owner) / "batches").glob("batch_*"))
        return sorted((batch for batch in found if batch), key=lambda b: (b.created_at, b.id), reverse=True)

    def state(self, batch: Batch) -> BatchState:
        """Return how far a batch is; one that is to be cancelled, and has not been yet, is `cancelling`."""
        content = read_json(self.folder(batch) / "state.json")
        state = BatchState() if content is None else BatchState(**content)
        if state.status not in ENDED and (cancelled := read_json(self.folder(batch) / "cancel")) is not None:
            state.status = "cancelling"
            state.times["cancelling"] = cancelled["at"]
        return state

    def save(self, batch: Batch, state: BatchState) -> None:
        """Write how far a batch is. For whoever holds its lock."""
        write_json(self.folder(batch) / "state.json", asdict(state))

    def cancel(self, batch: Batch) -> None:
        """Have a batch end as soon as possible. Idempotent."""
        if not (self.folder(batch) / "cancel").exists():
            write_json(self.folder(batch) / "cancel", {"at": int(self._clock())})

    def active(self) -> list[Batch]:
        """Return the batches that have not ended, the oldest first."""
        found = []
        for marker in self._active.glob("[0-9a-f]*.batch_*"):
            owner, _, batch_id = marker.name.partition(".")
            content = read_json(self._folder / "owners" / owner / "batches" / batch_id / "batch.json")
            if content is not None:
                found.append(Batch(**content))
            else:
                self._remove_old(marker)
        return sorted(found, key=lambda batch: (batch.created_at, batch.id))

    def results(self, batch: Batch) -> ResultFiles:
        """Return the batch's results, to be entered by whoever works on it."""
        return ResultFiles(self.folder(batch) / "outputs.jsonl", self.folder(batch) / "errors.jsonl")

    def input(self, batch: Batch) -> Path:
        """Return the batch's input."""
        return self.folder(batch) / "input.jsonl"

    def end(self, batch: Batch, state: BatchState) -> None:
        """Publish the results of a batch that has ended, and its state; then forget what it needed. Idempotent.

        For whoever holds its lock.
        """
        results = self.results(batch)
        expiry = batch.outputs_expire_after_s
        if state.completed:
            name = f"{batch.id}_output.jsonl"
            self.files.add_link(batch.owner, batch.output_file_id, results.outputs, name, "batch_output", expiry)
        if state.failed:
            name = f"{batch.id}_error.jsonl"
            self.files.add_link(batch.owner, batch.error_file_id, results.errors, name, "batch_output", expiry)
        self.save(batch, state)
        self.forget_input(batch)

    def forget_input(self, batch: Batch) -> None:
        """Remove what a batch that has ended needs no more."""
        results = self.results(batch)
        for path in (self.input(batch), results.outputs, results.errors, self._marker(batch)):
            path.unlink(missing_ok=True)

    def folder(self, batch: Batch) -> Path:
        """Return where everything of a batch is."""
        return self._owner(batch.owner) / "batches" / batch.id

    def _forget_oldest(self, owner: str) -> None:
        for batch in self.all_of(owner)[self._max_ended :]:
            if self.state(batch).status in ENDED:
                shutil.rmtree(self.folder(batch), ignore_errors=True)

    def _remove_old(self, marker: Path) -> None:
        """Remove the marker of a batch whose creation did not come to its end, once it is old."""
        with contextlib.suppress(FileNotFoundError):
            if self._clock() - marker.stat().st_ctime > _LEFT_S:
                marker.unlink()
                sync(self._active)

    def _owner(self, owner: str) -> Path:
        return owner_folder(self._folder, owner)

    @property
    def _active(self) -> Path:
        return self._folder / "active"

    def _marker(self, batch: Batch) -> Path:
        return self._active / f"{self._owner(batch.owner).name}.{batch.id}"
