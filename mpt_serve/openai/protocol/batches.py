"""The requests and responses of /v1/files and /v1/batches."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

# pydantic makes JSON Schemas of these only, before Python 3.12.
from typing_extensions import TypedDict

from mpt_serve.batches.input_lines import BATCH_ENDPOINTS
from mpt_serve.openai.protocol.request_model import RequestModel
from mpt_serve.openai.protocol.response_request import Metadata
from mpt_serve.openai.protocol.validation_errors import invalid

__all__ = [
    "BatchBody",
    "BatchList",
    "BatchRequest",
    "FileBody",
    "FileDeletion",
    "FileList",
    "FileUpload",
    "window_seconds",
]

_MOST_EXPIRY_S = 366 * 24 * 3600
_UNITS = {"m": 60, "h": 3600, "d": 24 * 3600}
_WINDOW = r"^[1-9][0-9]{0,3}[mhd]$"
_MOST_WINDOW_S = 30 * 24 * 3600


def window_seconds(window: str) -> int:
    """Return the length of a completion window such as `24h`."""
    return int(window[:-1]) * _UNITS[window[-1]]


def _check_window(window: str) -> str:
    if window_seconds(window) > _MOST_WINDOW_S:
        raise invalid("must be at most 30d")
    return window


def _integer(value: Any) -> Any:
    """Return the integer in a field of a form, which has texts alone."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value, re.ASCII) else value


Expiry = Annotated[int, Field(ge=3600, le=_MOST_EXPIRY_S)]


class FileUpload(RequestModel):
    """The form of POST /v1/files."""

    file: str = Field(
        description="The file: a batch's input, as large as `limits.max_body_bytes` allows.",
        json_schema_extra={"format": "binary"},
    )
    purpose: Literal["batch"] = Field(description="What it is for.")
    expires_anchor: Literal["created_at"] | None = Field(
        None, alias="expires_after[anchor]", description="What `expires_after[seconds]` counts from."
    )
    expires_seconds: Annotated[Expiry | None, BeforeValidator(_integer)] = Field(
        None, alias="expires_after[seconds]", description="The file is deleted then; without it, never by itself."
    )


class OutputExpiry(RequestModel):
    """When the results of a batch are deleted."""

    anchor: Literal["created_at"] = Field("created_at", description="The moment at which the batch has ended.")
    seconds: Expiry = Field(description="How long after it.")


class BatchRequest(RequestModel):
    """The body of POST /v1/batches."""

    input_file_id: Annotated[str, Field(max_length=64)] = Field(description="A file with the purpose `batch`.")
    endpoint: Literal[BATCH_ENDPOINTS] = Field(description="Of all its requests.")  # type: ignore[valid-type]
    completion_window: Annotated[str, Field(pattern=_WINDOW), AfterValidator(_check_window)] = Field(
        "24h", description="Minutes, hours or days (`90m`, `24h`, `7d`) after which what has not run expires."
    )
    metadata: Metadata | None = Field(None, description="Comes back with the batch.")
    output_expires_after: OutputExpiry | None = Field(
        None, description="When the files of results are deleted; without it, never by themselves."
    )


class FileBody(TypedDict):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: None


class FileList(TypedDict):
    """Some files, in the order of their creation."""

    object: Literal["list"]
    data: list[FileBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeletion(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class RequestCounts(TypedDict):
    """Lines of the input; how many have a result among the outputs, and among the errors."""

    total: int
    completed: int
    failed: int


class BatchErrorBody(TypedDict):
    code: str
    message: str
    param: None
    line: None


class BatchErrors(TypedDict):
    object: Literal["list"]
    data: list[BatchErrorBody]


class BatchBody(TypedDict):
    """A batch. Moments are null that have not come."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(TypedDict):
    """Some batches, the newest first."""

    object: Literal["list"]
    data: list[BatchBody]
    first_id: str | None
    last_id: str | None
    has_more: bool
