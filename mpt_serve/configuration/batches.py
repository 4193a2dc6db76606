"""Settings of the files that clients upload, and of the batches that run on them."""

from pydantic import ByteSize, Field

from mpt_serve.configuration.access import AbsolutePath
from mpt_serve.configuration.setting_types import Count, SettingsGroup, Size

__all__ = ["BatchSettings"]


class BatchSettings(SettingsGroup):
    """Files and batches (`docs/batches.md`). Numbers are for the owner of a key, or for all where none are required."""

    folder: AbsolutePath = Field(
        default=None,
        description="Where files and batches are kept. All nodes that run an Ingress must share it, on a file system"
        " with locks (a local disk, NFS 4); it survives restarts. Unset: `/v1/files` and `/v1/batches` refuse"
        " requests.",
    )
    max_files: Count = Field(default=1000, description="Files of one owner, results of batches included.")
    max_stored_bytes: Size = Field(
        default=ByteSize(4 * 1024**3),
        description="Size of one owner's files together; more uploads are refused. Results are stored in any case.",
    )
    max_unfinished: Count = Field(default=16, description="Batches of one owner that wait or run; more get a 429.")
    max_requests: Count = Field(default=50_000, description="Lines of one batch.")
    max_running: Count = Field(
        default=16,
        description="Requests of batches that one Ingress replica has waiting or running at the same time, over all"
        " owners.",
    )
