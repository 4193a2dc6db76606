"""Memory of weights: arrays are apart, aligned, and in large pages where the system has them; files in whole pieces."""

import io
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import weight_memory
from model.checkpoint.aligned_writer import AlignedWriter
from model.checkpoint.weight_memory import LARGE_PAGE, weight_empty


def test_arrays_share_chunks_and_no_bytes() -> None:
    shapes = [(300, 701), (1000, 1001), (5, 3), (40, 2**20), (1, 2**24 + 1)]
    arrays = [weight_empty(shape, np.dtype(np.uint8)) for shape in shapes]
    for i, array in enumerate(arrays):
        array[...] = i
    for i, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0
        assert (array == i).all()
    assert weight_empty((7, 300, 111), np.dtype(np.float16)).shape == (7, 300, 111)


def test_a_chunk_holds_many_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    large_pages = weight_memory._large_pages

    def counted(size: int) -> np.ndarray:
        made.append(size)
        return large_pages(size)

    monkeypatch.setattr(weight_memory, "_large_pages", counted)
    monkeypatch.setattr(weight_memory, "_rest", np.empty(0, np.uint8))
    matrices = [weight_empty((1024, 1000), np.dtype(np.uint8)) for _ in range(40)]
    assert len(made) == 2
    assert matrices[0].ctypes.data % LARGE_PAGE == 0


class _Raw(io.RawIOBase):
    """Remembers where each write began, and what it had."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []
        self.content = bytearray()

    def seek(self, position: int, whence: int = 0) -> int:
        self.content += bytes(position - len(self.content))
        return position

    def write(self, data) -> int:
        if len(data):
            self.writes.append((len(self.content), len(data)))
        self.content += data
        return len(data)


@pytest.mark.parametrize("start", [4096, LARGE_PAGE, LARGE_PAGE + 64])
def test_pieces_begin_and_end_with_large_pages(start: int) -> None:
    source = np.random.default_rng(0)
    parts = [
        source.bytes(n) for n in (100, LARGE_PAGE, 5 * LARGE_PAGE + 64, 0, 3 * LARGE_PAGE - 4096, 64, 2 * LARGE_PAGE)
    ]
    raw = _Raw()
    writer = AlignedWriter(raw, start)  # type: ignore[arg-type]
    for part in parts:
        writer.write(memoryview(part))
    writer.flush()
    assert bytes(raw.content[start:]) == b"".join(parts)
    for begin, _ in raw.writes[1:]:
        assert begin % LARGE_PAGE == 0
    for begin, size in raw.writes[:-1]:
        assert (begin + size) % LARGE_PAGE == 0


def test_a_file_that_is_written_reads_the_same(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3 * LARGE_PAGE)
    with (tmp_path / "file").open("wb") as file:
        writer = AlignedWriter(file, 64)
        for start in range(0, len(data), 700_001):
            writer.write(memoryview(data)[start : start + 700_001])
        writer.flush()
    assert (tmp_path / "file").read_bytes()[64:] == data
