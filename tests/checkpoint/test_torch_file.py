"""read_torch: both formats of torch.save, every layout of tensors, and nothing but tensors."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_writer import (
    Global,
    PersistentId,
    Reduce,
    View,
    dense_view,
    pickle_bytes,
    write_arrays,
    write_legacy,
    write_zip,
)

from model.checkpoint.stored_tensor import CheckpointError, read_tensor
from model.checkpoint.torch_file import read_torch

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=ml_dtypes.bfloat16),
    "c": np.arange(4, dtype=np.float16).reshape(4, 1),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(3, np.float64),
    "flags": np.array([True, False]),
}
TEN = np.arange(10, dtype=np.float32)


def read_all(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in read_torch(path).items():
        arrays[name] = np.empty(tensor.shape, tensor.dtype)
        read_tensor(tensor, arrays[name])
    return arrays


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_torch(path)
    assert path.name in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_every_float_dtype(tmp_path: Path, legacy: bool) -> None:
    write_arrays(tmp_path / "x.bin", ARRAYS, legacy)
    read = read_all(tmp_path / "x.bin")
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_one_storage(tmp_path: Path, legacy: bool) -> None:
    views = {
        "all": View("s", np.float32, 10, 0, (10,), (1,)),
        "tail": View("s", np.float32, 10, 7, (3,), (1,)),
        "transposed": View("s", np.float32, 10, 0, (5, 2), (1, 5)),
        "every other": View("s", np.float32, 10, 1, (4,), (2,)),
        "one column": View("s", np.float32, 10, 2, (3, 1), (3, 99)),
    }
    if legacy:
        write_legacy(tmp_path / "x.bin", views, {"s": (10, TEN.tobytes())})
    else:
        write_zip(tmp_path / "x.bin", views, {"s": TEN.tobytes()})
    read = read_all(tmp_path / "x.bin")
    np.testing.assert_array_equal(read["all"], TEN)
    np.testing.assert_array_equal(read["tail"], TEN[7:])
    np.testing.assert_array_equal(read["transposed"], TEN.reshape(2, 5).T)
    np.testing.assert_array_equal(read["every other"], TEN[1:9:2])
    np.testing.assert_array_equal(read["one column"], TEN[[2, 5, 8]].reshape(3, 1))


def test_parameters_and_metadata(tmp_path: Path) -> None:
    """torch.save(module.state_dict()) has `_metadata` set with BUILD; parameters come wrapped."""
    ordered = Global("collections", "OrderedDict")
    parameter = Reduce(
        Global("torch._utils", "_rebuild_parameter"), (dense_view("0", TEN).pickled(), True, Reduce(ordered, ()))
    )
    body = pickle_bytes(Reduce(ordered, ()))[:-1]
    items = b"(" + pickle_bytes("w")[2:-1] + pickle_bytes(parameter)[2:-1] + b"u"
    metadata = pickle_bytes({"_metadata": {"": {"version": 1}}})[2:-1] + b"b."
    write_zip(tmp_path / "x.bin", body + items + metadata, {"0": TEN.tobytes()})
    np.testing.assert_array_equal(read_all(tmp_path / "x.bin")["w"], TEN)


@pytest.mark.parametrize(
    "view",
    [
        View("s", np.float32, 10, 8, (3,), (1,)),
        View("s", np.float32, 10, 0, (3, 4), (4, 1)),
        View("s", np.float32, 10, 0, (2, 2), (9, 1)),
        View("s", np.float32, 10, 11, (0,), (1,)),
        View("s", np.float32, 10, 0, (1 << 40,), (0,)),
        View("s", np.float32, 10, 0, (1 << 62, 1 << 62), (1, 1)),
    ],
)
def test_tensors_beyond_their_storage(tmp_path: Path, view: View) -> None:
    write_zip(tmp_path / "x.bin", {"w": view}, {"s": TEN.tobytes()})
    message = refusal(tmp_path / "x.bin")
    assert "'w'" in message
    assert "storage of 10 elements" in message


@pytest.mark.parametrize(
    "view",
    [
        View("s", np.float32, 10, -1, (3,), (1,)),
        View("s", np.float32, 10, 9, (3,), (-1,)),
        View("s", np.float32, 10, 0, (-3,), (1,)),
        View("s", np.float32, 10, 0, (3, 2), (1,)),
        View("s", np.float32, 10, 0, (1,) * 17, (1,) * 17),
        View("s", np.float32, -10, 0, (1,), (1,)),
    ],
)
def test_sizes_that_are_none(tmp_path: Path, view: View) -> None:
    write_zip(tmp_path / "x.bin", {"w": view}, {"s": TEN.tobytes()})
    assert "damaged" in refusal(tmp_path / "x.bin")


def test_storages_must_be_there_and_whole(tmp_path: Path) -> None:
    state = {"w": dense_view("s", TEN)}
    write_zip(tmp_path / "x.bin", state, {"other": TEN.tobytes()})
    assert "'s' of 'w' is missing" in refusal(tmp_path / "x.bin")
    write_zip(tmp_path / "x.bin", state, {"s": TEN.tobytes()[:-1]})
    assert "'w' should have 40 bytes, the file holds 39" in refusal(tmp_path / "x.bin")
    write_legacy(tmp_path / "x.bin", state, {"s": (10, TEN.tobytes()[:-1])})
    assert "truncated" in refusal(tmp_path / "x.bin")
    write_legacy(tmp_path / "x.bin", state, {"s": (-10, b"")})
    assert "truncated" in refusal(tmp_path / "x.bin")
    write_legacy(tmp_path / "x.bin", state, {"s": (10, TEN.tobytes()), "t": (0, b"")})
    assert "'t' belongs to no tensor" in refusal(tmp_path / "x.bin")


def test_big_endian_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.bin", {"w": dense_view("s", TEN)}, {"s": TEN.tobytes()}, byteorder=b"big")
    assert "little-endian" in refusal(tmp_path / "x.bin")
    write_legacy(tmp_path / "x.bin", {"w": dense_view("s", TEN)}, {"s": (10, TEN.tobytes())}, little_endian=False)
    assert "little-endian" in refusal(tmp_path / "x.bin")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_zip(path, {"w": dense_view("s", TEN)}, {"s": bytes(40)}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/code.py", "")
    assert "without data.pkl" in refusal(path)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1", pickle.dumps(1, 2), b"PK\x03\x04 no more"):
        path.write_bytes(content)
        refusal(path)


@pytest.mark.parametrize(
    "value", [3, None, [1], "text", {"nested": {}}, Reduce(Global("collections", "OrderedDict"), ())]
)
def test_state_that_is_no_tensor(tmp_path: Path, value: Any) -> None:
    write_zip(tmp_path / "x.bin", {"step": value}, {})
    message = refusal(tmp_path / "x.bin")
    assert "'step' is a" in message
    assert "not a tensor" in message


def test_state_that_is_no_dict(tmp_path: Path) -> None:
    write_zip(tmp_path / "x.bin", [1, 2], {})
    assert "contains a list" in refusal(tmp_path / "x.bin")


class Payload:
    """Unpickled by the standard library, it leaves a file at `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_runs_nothing(tmp_path: Path, protocol: int, legacy: bool) -> None:
    marker = tmp_path / "marker"
    hostile = pickle.dumps({"w": Payload(marker)}, protocol)
    if legacy:
        write_legacy(tmp_path / "x.bin", hostile, {})
    else:
        write_zip(tmp_path / "x.bin", hostile, {})
    message = refusal(tmp_path / "x.bin")
    assert not marker.exists()
    if protocol >= 2:
        assert "the file contains posix.system" in message
    pickle.loads(hostile)
    assert marker.exists(), "the payload itself must work, or this test shows nothing"


SYSTEM = Global("posix", "system")


@pytest.mark.parametrize(
    ("pickled", "name"),
    [
        (pickle_bytes({"w": Reduce(Global("builtins", "eval"), ("1",))}), "builtins.eval"),
        (pickle_bytes({"w": Reduce(Global("torch._utils", "_rebuild_tensor_v3"), ())}), "_rebuild_tensor_v3"),
        (pickle_bytes({"w": Reduce(Global("torch._utils", "_rebuild_parameter"), (1,))}), "_rebuild_parameter"),
        (pickle_bytes({"w": Reduce(Global("collections", "OrderedDict"), ([],))}), "collections.OrderedDict"),
        (
            pickle_bytes({"w": PersistentId(("storage", Global("torch", "QInt8Storage"), "0", "cpu", 1))}),
            "QInt8Storage",
        ),
        (pickle_bytes({"w": PersistentId(("storage", "FloatStorage", "0", "cpu", 1))}), "str"),
        (pickle_bytes({"w": PersistentId(("module", SYSTEM, "0", "cpu", 1))}), "'module'"),
        (pickle_bytes({"w": PersistentId((((),), SYSTEM, "0", "cpu", 1))}), "persistent object"),
        (pickle_bytes({1: 2}), "int as key"),
        (b"\x80\x02(S'touch x'\niposix\nsystem\n.", "protocol 0"),
        (b"\x80\x02(iposix\nsystem\n.", "INST"),
        (b"\x80\x02(" + pickle_bytes(SYSTEM)[2:-1] + b"o.", "OBJ"),
        (b"\x80\x02" + pickle_bytes(SYSTEM)[2:-1] + b")\x81.", "NEWOBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x05\x96" + struct.pack("<Q", 4) + b"data.", "BYTEARRAY8"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
    ],
)
def test_refuses_by_name(tmp_path: Path, pickled: bytes, name: str) -> None:
    write_zip(tmp_path / "x.bin", pickled, {})
    message = refusal(tmp_path / "x.bin")
    assert "the file contains" in message
    assert name in message


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02X\xff\xff\xff\xffab.",  # a string of 4 GiB
        b"\x80\x02" + b"c" + b"a" * 10**6,  # a name without end
        b"\x80\x02)r\xff\xff\xff\xff.",  # the last of four billion memo slots
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a bytearray of 8 EiB
        b"\x80\x02})" + b"\x85" * 10**5 + b"K\x01s.",  # a deep tuple, which would be hashed as a key
        b"\x80\x02" + (b"X\xff\xff\x00\x00" + b"a" * 65535) * 20,  # longer than any state dict
        b"\x80\x02" + b"a.",
        b"\x80\x02" + b"s.",
        b"\x80\x02" + b"R.",
        b"\x80\x02" + b"Q.",
        b"\x80\x02" + b"(q\x00e.",
        b"\x80\x02" + b")q\x00h\x01.",
        b"\x80\x02" + b"))a.",
        b"\x80\x02" + b"}(K\x01K\x02K\x03u.",
        b"\x80\x02" + b"X\x01\x00\x00\x00\xff.",
        b"",
    ],
)
def test_senseless_pickles_cost_no_memory(tmp_path: Path, pickled: bytes) -> None:
    write_zip(tmp_path / "x.bin", pickled, {})
    tracemalloc.start()
    refusal(tmp_path / "x.bin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 + 200 * min(len(pickled), 2**20)


def valid_bytes(legacy: bool) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder) / "x.bin", ARRAYS, legacy)
        return (Path(folder) / "x.bin").read_bytes()


VALID = {legacy: valid_bytes(legacy) for legacy in (False, True)}


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """Return a valid file with a few bytes changed, removed or added."""
    data = bytearray(VALID[draw(st.booleans())])
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    end = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return bytes(data[:end]) + draw(st.binary(max_size=4))


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(mangled(), st.binary(max_size=64).map(lambda tail: b"\x80\x02" + tail)))
def test_mangled_files_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    try:
        arrays = read_all(path)
    except CheckpointError:
        return
    assert all(array.nbytes <= len(content) for array in arrays.values())
