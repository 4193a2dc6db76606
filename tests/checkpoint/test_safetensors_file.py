"""read_safetensors: what the library writes is read; whatever else a file claims is refused by name."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from model.checkpoint.safetensors_file import read_safetensors
from model.checkpoint.stored_tensor import CheckpointError, read_tensor

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=ml_dtypes.bfloat16),
    "c": np.zeros((0, 5), np.float16),
    "d": np.array(7, np.float32),
    "flags": np.array([True, False]),
}
VALID = save(ARRAYS, metadata={"format": "pt"})


def write(path: Path, header: Any, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read_all(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in read_safetensors(path).items():
        arrays[name] = np.empty(tensor.shape, tensor.dtype)
        read_tensor(tensor, arrays[name])
    return arrays


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = read_all(tmp_path / "x.safetensors")
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize(
    ("header", "data", "parts"),
    [
        pytest.param({"w": entry()}, b"1234", ["'w'", "byte 8", "holds 4"], id="file cut short"),
        pytest.param({"w": entry(shape=(3,))}, b"x" * 8, ["'w'", "takes 12 bytes", "hold 8"], id="shape too big"),
        pytest.param(
            {"w": entry(offsets=(0, 4))}, b"x" * 8, ["'w'", "takes 8 bytes", "hold 4"], id="offsets too short"
        ),
        pytest.param({"w": entry(offsets=(8, 0))}, b"x" * 8, ["'w'", "hold -8"], id="offsets reversed"),
        pytest.param({"w": entry(offsets=(-8, 0))}, b"x" * 8, ["'w'", "[-8, 0]"], id="negative offset"),
        pytest.param({"w": entry(offsets=[0])}, b"x" * 8, ["'w'", "data_offsets [0]"], id="one offset"),
        pytest.param({"w": entry(shape=[-2])}, b"x" * 8, ["'w'", "shape [-2]"], id="negative size"),
        pytest.param({"w": entry(shape=[True, 2])}, b"x" * 8, ["'w'", "shape [True, 2]"], id="bool as size"),
        pytest.param({"w": entry(dtype="F4")}, b"x" * 8, ["'w'", "'F4'", "BF16"], id="unknown dtype"),
        pytest.param({"w": entry(dtype=None)}, b"x" * 8, ["'w'", "'None'"], id="no dtype"),
        pytest.param({"w": entry(), "v": entry()}, b"x" * 8, ["overlaps", "at 8"], id="overlap"),
        pytest.param({"w": entry(), "v": entry(offsets=(12, 20))}, b"x" * 20, ["'v'", "gap", "12", "8"], id="gap"),
        pytest.param({"w": entry()}, b"x" * 9, ["8 bytes of data", "holds 9"], id="data left over"),
        pytest.param({"w": [1]}, b"", ["'w'", "list"], id="entry not an object"),
        pytest.param([1], b"", ["list, not an object"], id="header not an object"),
        pytest.param(b"{'w'", b"", ["not JSON"], id="header not JSON"),
        pytest.param(b"\xff\xfe", b"", ["not JSON"], id="header not UTF-8"),
        pytest.param(b"[" * 100_000, b"", ["not JSON"], id="header nested without end"),
        pytest.param(b'{"w": {}, "w": {}}', b"", ["'w' twice"], id="a name twice"),
    ],
)
def test_refuses_by_name(tmp_path: Path, header: Any, data: bytes, parts: list[str]) -> None:
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError) as error:
        read_safetensors(path)
    for part in ["model.safetensors", *parts]:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 7, (2**60).to_bytes(8, "little") + b"{}", b"version https://git-lfs"]
)
def test_lying_header_length_is_refused_without_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=f"it has {len(content)} bytes"):
        read_safetensors(tmp_path / "x.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Return a valid file with a few bytes changed, removed or added."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=4))


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(mangled(), st.binary(max_size=64)))
def test_mangled_files_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        arrays = read_all(path)
    except CheckpointError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(content)


def test_file_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(VALID)
    tensors = read_safetensors(path)
    path.write_bytes(VALID[: tensors["a"].offset + 4])
    with pytest.raises(CheckpointError, match=r"ends inside 'a': 24 bytes expected at byte [0-9]+, 4 found"):
        read_tensor(tensors["a"], np.empty((2, 3), np.float32))
