"""Orbax trees: there and back without a changed bit, with llm-foundry's names and Flax's."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from flax_writer import flax_tree
from tiny_model import TINY, checkpoint_arrays

from model.checkpoint.convert import Checkpoint
from model.checkpoint.convert_orbax import write_orbax
from model.checkpoint.folder import checkpoint_files, find_tensors
from model.checkpoint.load import load_weights
from model.checkpoint.orbax_folder import check_chunks, write_tree
from model.checkpoint.stored_tensor import CheckpointError, read_whole
from model.config.mpt_config import MptConfig
from model.params.weights import leaf_paths


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_changes_no_bit(save: Callable[..., Path], tmp_path: Path, dtype: str) -> None:
    source = save(dtype=dtype)
    write_orbax(Checkpoint.open(source), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "orbax"]
    config = MptConfig.from_file(tmp_path / "out")
    assert config == MptConfig.from_file(source)
    theirs, ours = (leaf_paths(load_weights(folder, config)) for folder in (source, tmp_path / "out"))
    assert all(ours[path].dtype == dtype and np.array_equal(ours[path], theirs[path]) for path in theirs)
    assert any(file.is_relative_to(tmp_path / "out" / "orbax") for file in checkpoint_files(tmp_path / "out"))


def test_a_training_state_of_flax_is_read(tmp_path: Path) -> None:
    """As CheckpointManager saves it: a folder for the step, and one for the item."""
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in checkpoint_arrays(TINY).items()}
    tree = flatten_dict({"params": flax_tree(arrays), "opt_state": {"mu": flax_tree(arrays)}}, sep=".")
    write_tree(tmp_path / "100" / "default", {**tree, "step": np.array(7)})
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    found = read_all(tmp_path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array), name


def read_all(folder: Path) -> dict[str, np.ndarray]:
    return {name: read_whole(tensor) for name, tensor in find_tensors(folder).items()}


@pytest.mark.parametrize("damaged", ["_METADATA", "d/*"])
def test_damaged_trees_are_named(tmp_path: Path, damaged: str) -> None:
    """Of one array: where several cannot be read, the library leaves requests to a loop that is closed."""
    write_tree(tmp_path, {"transformer.wte.weight": np.ones((40, 16), np.float32)})
    for file in tmp_path.rglob(damaged):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: orbax-checkpoint cannot read it"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("chunk", "fits"), [(None, True), ((3, 4), True), ((1, 4), True), ((3, 2**40), False), ((3,), False)]
)
def test_chunks_are_no_larger_than_their_array(tmp_path: Path, chunk: tuple[int, ...] | None, fits: bool) -> None:
    """A compressed chunk of zeros takes few bytes of a file, and as many of memory as its shape says."""
    if fits:
        check_chunks(tmp_path, ("a", "b"), (3, 4), chunk)
    else:
        with pytest.raises(CheckpointError, match=r"'a\.b' is \[3, 4\] in chunks of \[.*it is damaged"):
            check_chunks(tmp_path, ("a", "b"), (3, 4), chunk)


def test_two_trees_are_no_choice(tmp_path: Path) -> None:
    for step in ("1", "2"):
        write_tree(tmp_path / step, {"a": np.ones(3)})
    with pytest.raises(CheckpointError, match="no weights"):
        find_tensors(tmp_path)


def test_without_the_package_a_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("orbax"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "_METADATA").write_text("{}")
    with pytest.raises(CheckpointError, match=r"need the package orbax-checkpoint .*pip install 'mpt-serve\[orbax\]'"):
        find_tensors(tmp_path)
