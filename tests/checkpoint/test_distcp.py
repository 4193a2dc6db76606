"""torch.distributed.checkpoint's folders: one that torch wrote, and others that name what cannot be read."""

import json
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TINY
from torch_writer import dense_view, pickle_bytes, write_zip

from model.checkpoint.folder import checkpoint_files, find_tensors
from model.checkpoint.stored_tensor import CheckpointError, read_whole
from model.params.weights import leaf_paths, weight_specs
from model.pretrained import mpt_from_pretrained

OF_TORCH = Path(__file__).parent / "distcp"  # make.py in it wrote it
CONFIG = TINY | {"n_layers": 1}
MODULE = "torch.distributed.checkpoint.metadata"


def expected(name: str, shape: tuple[int, ...]) -> np.ndarray:
    numbers = (np.arange(np.prod(shape)) * 37 + len(name)) % 101 - 50
    return (numbers / 64).reshape(shape).astype(ml_dtypes.bfloat16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "ba1"
    shutil.copytree(OF_TORCH, copied, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (copied / "config.json").write_text(json.dumps(CONFIG))
    return copied


def test_what_three_ranks_of_torch_saved_is_read(folder: Path) -> None:
    weights, config = mpt_from_pretrained(folder)
    leaves = leaf_paths(weights)
    for spec in weight_specs(config):
        leaf = leaves[spec.path]
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(leaf), expected(spec.name, spec.shape))
    names = {file.name for file in checkpoint_files(folder)}
    assert names >= {".metadata", "__0_0.distcp", "__1_0.distcp", "__2_0.distcp"}


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    (folder / "__2_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__2_0\.distcp is missing, a file of one of the ranks; copy all"):
        find_tensors(folder)
    (folder / ".metadata").unlink()
    for read in (find_tensors, mpt_from_pretrained):
        with pytest.raises(CheckpointError, match=r"no weights: .*\.metadata is missing, .* copy it too"):
            read(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"__1_0.distcp: .*truncated"):
        find_tensors(folder)


@given(st.data())
def test_damaged_metadata_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    for file in OF_TORCH.glob("*.distcp"):
        (folder / file.name).symlink_to(file)
    content = bytearray((OF_TORCH / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / ".metadata").write_bytes(content)
    try:
        tensors = find_tensors(folder)
        for tensor in tensors.values():
            read_whole(tensor)
    except CheckpointError:
        pass


def classes() -> dict[str, Any]:
    """Return stand-ins for torch's classes, which the pickle only names."""
    found = {}
    for module, name in (
        *((MODULE, n) for n in ("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata")),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ):
        found[name] = type(
            name, (), {"__module__": module, "__init__": lambda self, **fields: vars(self).update(fields)}
        )
    return found


def save(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a tensor [4, 2] of two chunks, as `change` has their description."""
    fields: dict[str, Any] = {
        "size": (4, 2),
        "chunks": [((0, 0), (2, 2)), ((2, 0), (2, 2))],
        "places": {"relative_path": "__0_0.distcp", "offset": 0, "transform_descriptors": None},
        "fqn": "transformer.wte.weight",
        "dtypes": [np.float32, np.float32],
    }
    change(fields)
    made, storage_data, content = classes(), {}, b""
    for (offsets, sizes), dtype in zip(fields["chunks"], fields["dtypes"], strict=True):
        array = np.ones(fields.get("stored", sizes), dtype)
        part = folder / "part"
        write_zip(part, fields.get("pickle", dense_view("0", array)), {"0": array.tobytes()})
        place = {"length": part.stat().st_size} | fields["places"] | {"offset": len(content)}
        index = made["MetadataIndex"](fqn=fields["fqn"], offset=offsets, index=None)
        storage_data[index] = made["_StorageInfo"](**place)
        content += part.read_bytes()
        part.unlink()
    chunks = [made["ChunkStorageMetadata"](offsets=offsets, sizes=sizes) for offsets, sizes in fields["chunks"]]
    described = {"transformer.wte.weight": made["TensorStorageMetadata"](size=fields["size"], chunks=chunks)}
    metadata = made["Metadata"](state_dict_metadata=described, storage_data=storage_data)
    paths = {kind.__module__ for kind in made.values()}
    paths |= {str(parent).replace("/", ".") for path in paths for parent in Path(path.replace(".", "/")).parents[:-1]}
    modules = {path: types.ModuleType(path) for path in paths}
    for name, kind in made.items():
        setattr(modules[kind.__module__], name, kind)
    with mock.patch.dict(sys.modules, modules):
        (folder / ".metadata").write_bytes(pickle.dumps(metadata, 4))
    (folder / "__0_0.distcp").write_bytes(content)
    return folder


def test_a_state_dict_alone_is_read(tmp_path: Path) -> None:
    tensors = find_tensors(save(tmp_path, lambda fields: None))
    np.testing.assert_array_equal(read_whole(tensors["transformer.wte.weight"]), np.ones((4, 2), np.float32))


def test_chunks_without_rows_are_nothing(tmp_path: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields.update(chunks=[((0, 0), (4, 2)), ((4, 0), (0, 2))])

    assert find_tensors(save(tmp_path, change))["transformer.wte.weight"].computed is None


COLUMNS = [((0, 0), (4, 1)), ((0, 1), (4, 1))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks": COLUMNS}, r"\[4, 2\] is not stored as runs of its rows; .*consolidated first"),
        ({"chunks": [((0, 0), (2, 2)), ((0, 0), (2, 2))]}, "not stored as runs of its rows"),
        ({"size": (5, 2)}, "not stored as runs of its rows"),
        ({"size": [4, 2]}, "'size' is a list, not a tuple"),
        ({"size": (4, -2)}, "'size' holds no sizes"),
        ({"dtypes": [np.float32, np.float16]}, "of several dtypes"),
        ({"fqn": "another"}, "names no place of a chunk"),
        ({"stored": (1, 2)}, r"is \[1, 2\], and \[2, 2\] in .metadata"),
        ({"pickle": {}}, "contains a dict in place of the tensor"),
        ({"pickle": pickle_bytes([])}, "contains a list in place of the tensor"),
        ({"places": {"relative_path": "../x"}}, "must be a file in the same folder"),
        ({"places": {"relative_path": 3}}, "'relative_path' is a int, not a str"),
        ({"places": {"relative_path": "__0_0.distcp", "transform_descriptors": ["zstd"]}}, "compressed or encrypted"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_tensors(save(tmp_path, lambda fields: fields.update(changes)))


def test_another_pickle_is_no_metadata(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    (tmp_path / ".metadata").write_bytes(pickle_bytes({"a": 1}))
    with pytest.raises(CheckpointError, match=r"is no metadata of torch.distributed.checkpoint: 'state_dict_metadata'"):
        find_tensors(tmp_path)
