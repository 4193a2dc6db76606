"""Embeddings in a prompt, in place of rows of the model's table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from model.checkpoint.safetensors_file import DTYPES
from mpt_serve.errors import RequestError

__all__ = ["EMBEDS_DTYPES", "PromptEmbeds"]

EMBEDS_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {name: DTYPES[name] for name in ("F32", "F16", "BF16")}
"""The types of numbers that embeddings may have, by their names in safetensors files."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptEmbeds:
    """Rows that stand at some positions of a prompt; the ids there are not read.

    positions: [k] int32, ascending. rows: [k, d] float32, finite; learned positions are added to them as to any row.
    """

    positions: npt.NDArray[np.int32]
    rows: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: Any, start: int = 0) -> Self:
        """Return embeddings at the positions from `start` on.

        rows: an array [k, d], or [1, k, d], of float32, float16 or bfloat16. Raises RequestError.
        """
        array = np.asarray(rows)
        if array.dtype not in EMBEDS_DTYPES.values():
            raise RequestError(f"prompt embeddings must be float32, float16 or bfloat16, not {array.dtype}")
        if array.ndim == 3 and len(array) == 1:
            array = array[0]
        if array.ndim != 2 or 0 in array.shape:
            raise RequestError(
                f"prompt embeddings must have the shape (tokens, hidden size), both at least 1, not {array.shape}"
            )
        numbers = array.astype(np.float32)  # a copy, which no caller changes later
        if not np.isfinite(numbers).all():
            raise RequestError("prompt embeddings must be finite numbers: neither NaN nor infinite")
        return cls(np.arange(start, start + len(numbers), dtype=np.int32), numbers)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Self:
        """Return embeddings of the numbers in `data`, as safetensors files hold them. Raises RequestError.

        dtype: one of EMBEDS_DTYPES. data: as many bytes as the shape says.
        """
        return cls.of(np.frombuffer(data, EMBEDS_DTYPES[dtype]).reshape(shape))

    def between(self, start: int, stop: int) -> slice:
        """Return which of the rows stand at positions from `start` to before `stop`."""
        begin, end = np.searchsorted(self.positions, (start, stop))
        return slice(int(begin), int(end))

    def content(self, start: int, stop: int) -> bytes:
        """Return what stands at positions from `start` to before `stop`, for digests: equal for equal rows there."""
        own = self.between(start, stop)
        return (self.positions[own] - start).tobytes() + self.rows[own].tobytes()
