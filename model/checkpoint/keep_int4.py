"""Matrices that a checkpoint stores as 4-bit integers (GPTQ, AWQ) as int4 weights of the same numbers.

An int4 weight is (code - 8) * scale of its group, without a zero point. So the stored integers stay where every zero
point is 8, which symmetric quantisation gives, groups are runs of inputs in their order, and as long as the format's or
a multiple: each of the format's groups then has the scale of the one that it lies in. Other matrices are dequantised,
and quantised again.
"""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.host_threads import in_threads
from model.checkpoint.match import Source
from model.checkpoint.pack import pack_codes, panel_parts, panels_of
from model.checkpoint.stored_tensor import StoredInt4
from model.checkpoint.weight_memory import weight_empty
from model.config.mpt_config import MptConfig
from model.params.packed_matrix import PANEL, PackedMatrix, packed_arrays
from model.params.weight_format import WeightFormat

logger = logging.getLogger(__name__)


class Int4Keeper:
    """Keeps stored integers while a checkpoint is loaded, and logs at the end what became of them."""

    def __init__(self, config: MptConfig, format: WeightFormat) -> None:
        self._tied_head, self._format = config.tied_head, format
        self._kept = 0
        self._reasons: Counter[str] = Counter()

    def matrix(self, source: Source) -> PackedMatrix | None:
        """Return a parameter with the integers that the file stores; None where it stores none, or they cannot stay."""
        stored = [part.computed.int4 for part in source.parts if part.computed is not None]
        if len(stored) < len(source.parts) or None in stored:
            return None
        if self._format.of(source.spec.path, np.float32, self._tied_head) != "int4":
            head = self._format.quantization == "int4"
            self._reasons["the head is int8" if head else f"quantization is {self._format.quantization!r}"] += 1
            return None
        parts = [self._fitting(read()) for read in stored if read is not None]
        reason = next((part for part in parts if isinstance(part, str)), None)
        if reason is not None:
            self._reasons[reason] += 1
            return None
        self._kept += 1
        return _packed(source, [part for part in parts if isinstance(part, StoredInt4)], self._format.group)

    def log(self) -> None:
        """Log how many matrices kept their integers, and why others did not."""
        if self._kept:
            logger.info("weights: %d matrices of the checkpoint's 4-bit integers are kept as int4", self._kept)
        for reason, count in self._reasons.most_common():
            logger.info("weights: %d matrices of the checkpoint's integers are dequantised: %s", count, reason)

    def _fitting(self, found: StoredInt4 | str) -> StoredInt4 | str:
        if isinstance(found, StoredInt4) and found.scales.shape[1] > 1 and found.group % self._format.group:
            return f"their groups of {found.group} inputs are no multiple of int4's {self._format.group}"
        return found


def _packed(source: Source, parts: Sequence[StoredInt4], group: int) -> PackedMatrix:
    N, K = source.spec.shape
    groups = -(-K // group)
    first = np.minimum(np.arange(groups) * group, K - 1)  # the first input of each of the format's groups
    scales = np.concatenate([part.scales[:, first // part.group] for part in parts])
    padded = np.pad(scales, ((0, -N % PANEL), (0, 0))).reshape(-1, PANEL, groups).swapaxes(1, 2)
    return PackedMatrix(
        data=_packed_codes(np.concatenate([part.codes for part in parts]), group),  # type: ignore[arg-type]
        row_scale=np.ones(N, np.float32),  # type: ignore[arg-type]
        group_scale=np.ascontiguousarray(padded),  # type: ignore[arg-type]
        shape=(N, K),
        format="int4",
        group=group,
    )


def _packed_codes(codes: NDArray[np.int8], group: int) -> NDArray[np.uint8]:
    """Return `PackedMatrix.data` of codes [N, K]."""
    size, dtype = packed_arrays((codes.shape[0], codes.shape[1]), "int4", group)["data"]
    data = weight_empty(size, dtype)

    def pack(rows: slice) -> None:
        data[panels_of(rows)] = pack_codes(codes[rows], "int4")

    in_threads(pack, panel_parts(*codes.shape))
    return data
