"""EasyDeL's and Flax's files: the same numbers as in llm-foundry's form, kernels transposed."""

import contextlib
from pathlib import Path
from typing import Any

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax_writer import EASYDEL, stream, write_easydel
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import TINY

from model.checkpoint import msgpack_scan
from model.checkpoint.flax_file import read_flax
from model.checkpoint.folder import find_tensors
from model.checkpoint.load import load_weights
from model.checkpoint.stored_tensor import CheckpointError, read_whole
from model.config.dialects import family_config
from model.config.mpt_config import MptConfig
from model.params.weights import leaf_paths, weight_specs


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layout", ["stream", "state", "whole", "safetensors", "model.safetensors", "shards"])
def test_every_layout_has_the_same_numbers(tmp_path: Path, layout: str, dtype: Any) -> None:
    arrays = write_easydel(tmp_path, layout, dtype)
    config = MptConfig.from_file(tmp_path)
    assert config == MptConfig.from_dict(TINY)
    assert MptConfig.from_dict(family_config(tmp_path)) == config
    weights = leaf_paths(load_weights(tmp_path, config))
    for spec in weight_specs(config):
        assert weights[spec.path].dtype == dtype
        assert np.array_equal(weights[spec.path], arrays[spec.name]), spec.name


def test_arrays_of_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    arrays = write_easydel(tmp_path, "whole")
    found = find_tensors(tmp_path)
    assert any(tensor.computed is not None for tensor in found.values())
    for name, array in arrays.items():
        assert np.array_equal(read_whole(found[name]), array)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bits": 8}, "'bits' is 8; EasyDeL's quantised parameters are not read"),
        ({"use_norm_bias": True}, "'use_norm_bias' differs from 'use_bias'"),
        ({"easy_method": "train", "moon": 1}, "'moon' is 1; unknown key"),
        ({"act_fn": "moon"}, "ffn_config.ffn_act_fn"),
        ({"qk_ln": True}, "'qk_ln' is True, and 'attn_config.qk_ln' is False; keep the one"),
    ],
)
def test_keys_of_easydel_that_change_the_model_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MptConfig.from_dict({**EASYDEL, **keys})


def test_keys_of_easydel_that_say_something_are_read() -> None:
    plain = {key: value for key, value in EASYDEL.items() if key != "attn_config"}
    config = MptConfig.from_dict({**plain, "use_bias": True, "use_norm_bias": True, "act_fn": "relu", "qk_ln": True})
    assert (config.bias, config.activation.name, config.qk_norm, config.alibi) == (True, "relu", "ln", True)
    assert not MptConfig.from_dict({**plain, "alibi": False}).alibi


ARRAY = flax.serialization.to_bytes(np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no parameters as Flax writes them"),
        (b"\xc1", "byte 0 begins no MessagePack value"),
        (msgpack.packb(5), "begins with a int"),
        (msgpack.packb([["a"], ARRAY])[:-1], "truncated"),
        (msgpack.packb([["a"], ARRAY[:-1]]), "truncated"),
        (b"\xdd\xff\xff\xff\xff" + b"\x01" * 50, "truncated"),
        (b"\x91" * 100, "more values than the parameters of a model"),
        (msgpack.packb({"a": {1.5: 2}}), "a key that is a float"),
        (msgpack.packb({"a": "x" * 70_000}), "a text of 70000 bytes"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([1, 2]))}), "no array of shape, dtype and bytes"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[-1], "float32", b""]))}), "has the shape"),
        (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[2], "float32", b"abcd"]))}), "takes 8 bytes"),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {}}}), "0 parts of 'a'"),
        (msgpack.packb({"a": {"kernel": msgpack.ExtType(1, msgpack.packb([[1], "float32", b"abcd"]))}}), "is a matrix"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "easydel-model.parameters"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"easydel-model.parameters: .*{message}"):
        read_flax(path)


def test_two_parameters_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "easydel-model.parameters"
    path.write_bytes(msgpack.packb([["h", "a"], ARRAY]) + msgpack.packb([["blocks", "a"], ARRAY]))
    with pytest.raises(CheckpointError, match=r"'h\.a' and 'blocks\.a' are the same parameter"):
        read_flax(path)


@given(data=st.data())
def test_any_damage_gives_a_message(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / "easydel-model.parameters"
    content = bytearray(stream({"params": {"wte": {"embedding": np.ones((2, 3), np.float32)}, "n": np.int32(1)}}))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(place, len(content)))])
    with contextlib.suppress(CheckpointError):
        for tensor in read_flax(path).values():
            read_whole(tensor)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3), inner, max_size=20),
    max_leaves=40,
)


@settings(max_examples=30)
@given(value=VALUES)
def test_values_are_those_of_msgpack(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("values") / "x"
    path.write_bytes(msgpack.packb(value))
    with path.open("rb") as file:
        assert msgpack_scan.Scanner(file, "x").value() == value


@given(sizes=st.lists(st.sampled_from([0, 1, 2, 4, 8, 16, 17, 255, 256, 65_535, 65_536]), max_size=4))
def test_bytes_are_where_they_are_said_to_be(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    values = [bytes([i]) * size for i, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("bytes") / "x"
    path.write_bytes(msgpack.packb([*values, *(msgpack.ExtType(3, value) for value in values)]))
    content = path.read_bytes()
    with path.open("rb") as file:
        extents = msgpack_scan.Scanner(file, "x").value()
    assert [content[e.offset : e.offset + e.nbytes] for e in extents] == values * 2
    assert [e.kind for e in extents] == [None] * len(values) + [3] * len(values)
