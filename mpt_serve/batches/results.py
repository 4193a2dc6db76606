"""What became of each request of a batch: one line in a file of outputs, or in one of errors."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpt_serve.batches.input_lines import BadLineError

__all__ = ["RECORD_START", "Result"]

RECORD_START = b'{"id": "batch_req_'


@dataclass(frozen=True)
class Result:
    """One request's result. record: as OpenAI's batches have it. succeeded: it belongs to the outputs.

    custom_id: None for a line without one that can be used. line: the number of a line that is no request.
    """

    record: Mapping[str, Any]
    succeeded: bool
    custom_id: str | None
    line: int | None = None

    @classmethod
    def of_response(cls, custom_id: str, status: int, request_id: str, body: Any) -> "Result":
        """Return the result of a request that was answered."""
        response = {"status_code": status, "request_id": request_id, "body": body}
        record = {"id": _new_id(), "custom_id": custom_id, "response": response, "error": None}
        return cls(record, status == 200, custom_id)

    @classmethod
    def of_failure(cls, custom_id: str, code: str, message: str) -> "Result":
        """Return the result of a request that has no response, and will have none."""
        error = {"code": code, "message": message}
        record = {"id": _new_id(), "custom_id": custom_id, "response": None, "error": error}
        return cls(record, False, custom_id)

    @classmethod
    def of_bad_line(cls, line: int, error: BadLineError) -> "Result":
        """Return the result of a line that is no request."""
        record = {
            "id": _new_id(),
            "custom_id": error.custom_id,
            "response": None,
            "error": {"code": error.code, "message": str(error), "line": line},
        }
        return cls(record, False, error.custom_id, line)

    def as_line(self) -> bytes:
        """Return the record with its line break."""
        # Not as UTF-8: what a client sent may hold halves of characters, which that has no form for.
        return json.dumps(self.record).encode() + b"\n"


def _new_id() -> str:
    return f"batch_req_{secrets.token_hex(12)}"
