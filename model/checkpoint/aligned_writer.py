"""Writes a file in whole large pages.

The system keeps in memory what was just written, in pages no larger than the pieces that it was written in, and a map
of the file has these pages. So that weights are read from large pages already by the process that wrote them, pieces
begin and end at multiples of 2 MiB.
"""

from typing import BinaryIO

from model.checkpoint.weight_memory import LARGE_PAGE


class AlignedWriter:
    """Writes to `file` from `position` on; what is written is in the file after `flush`. Raises OSError."""

    def __init__(self, file: BinaryIO, position: int) -> None:
        self._file = file
        self._piece = bytearray()
        self._space = LARGE_PAGE - position % LARGE_PAGE  # that the piece may have
        file.seek(position)

    def write(self, data: memoryview) -> None:
        """Append bytes."""
        if self._piece or self._space < LARGE_PAGE:
            first = self._space - len(self._piece)
            self._piece += data[:first]
            data = data[first:]
            if len(self._piece) < self._space:
                return
            self.flush()
            self._space = LARGE_PAGE
        whole = len(data) // LARGE_PAGE * LARGE_PAGE
        self._file.write(data[:whole])
        self._piece += data[whole:]

    def flush(self) -> None:
        """Write what is left of a piece."""
        self._file.write(self._piece)
        self._piece.clear()
