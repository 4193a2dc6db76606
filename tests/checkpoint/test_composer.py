"""Checkpoints of Composer: the model's weights are read, the optimizer's are not, and nothing in them is called."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import TINY, checkpoint_arrays
from torch_writer import Global, Raw, Reduce, dense_view, write_arrays, write_zip

from model.checkpoint.folder import find_tensors
from model.checkpoint.load import load_weights
from model.checkpoint.stored_tensor import CheckpointError
from model.checkpoint.torch_file import read_torch, read_training_checkpoint
from model.config.mpt_config import MptConfig
from model.params.weights import leaf_paths, weight_specs

ARRAYS = checkpoint_arrays(TINY)
NEW_OBJECT = Raw(b"ccomposer.core.time\nTimestamp\n)\x81}(X\x01\x00\x00\x00aK\x01ub")  # __new__, then attributes
OTHERS: dict[str, Any] = {
    "timestamp": NEW_OBJECT,
    "a set": Raw(b"\x8f(K\x01K\x02\x90"),
    "a frozen set": Raw(b"(K\x01\x91"),
    "bytes": Raw(b"C\x03abc"),
    "an enumeration": Reduce(Global("composer.core.time", "TimeUnit"), ("ba",)),
    "random numbers": Reduce(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,))),
    "a call that must not happen": Reduce(Global("os", "system"), ("touch /tmp/mpt_serve_was_here",)),
    "numbers as keys": {1: "a", 2: [1.5 > 1, None]},
    "another dict": Raw(b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R(X\x01\x00\x00\x00aK\x01u"),
    "an object with arguments": Raw(b"ca\nB\n(K\x01t}\x92"),
}  # fmt: skip


def write(path: Path, prefix: str = "model.", outer: tuple[str, ...] = ("state", "model"), **extra: Any) -> Path:
    """Write ARRAYS as Composer does, with an optimizer's state of the same sizes that is not in the file."""
    keys = {name: str(i) for i, name in enumerate(ARRAYS)}
    model: Any = {prefix + name: dense_view(keys[name], array) for name, array in ARRAYS.items()} | extra
    state: Any = model
    for key in reversed(outer):
        state = {key: state, **(OTHERS if key == outer[0] else {"optimizers": {"Adam": {"state": OTHERS}}})}
    write_zip(path, state, {keys[name]: array.tobytes() for name, array in ARRAYS.items()})
    return path


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "model.module.", ""])
@pytest.mark.parametrize("outer", [("state", "model"), ("model",), ("state_dict",)])
def test_the_models_weights_are_found(tmp_path: Path, prefix: str, outer: tuple[str, ...]) -> None:
    write(tmp_path / "ep0-ba100-rank0.pt", prefix, outer)
    (tmp_path / "optimizer.pt").write_bytes(b"")  # transformers' Trainer
    weights = leaf_paths(load_weights(tmp_path, MptConfig.from_dict(TINY)))
    for spec in weight_specs(MptConfig.from_dict(TINY)):
        assert np.array_equal(weights[spec.path], ARRAYS[spec.name])
    assert not Path("/tmp/mpt_serve_was_here").exists()


def test_a_state_dict_alone_may_be_a_pt(tmp_path: Path) -> None:
    write_arrays(tmp_path / "model.pt", ARRAYS)
    assert find_tensors(tmp_path).keys() == ARRAYS.keys()
    write_arrays(tmp_path / "old.pt", ARRAYS, legacy=True)
    assert read_training_checkpoint(tmp_path / "old.pt").keys() == ARRAYS.keys()


def test_what_belongs_to_no_parameter_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt", **{"model.transformer.norm_f._extra_state": None})
    assert len(read_training_checkpoint(path)) == len(ARRAYS)
    path = write(tmp_path / "m.pt", other=Reduce(Global("os", "system"), ("x",)))
    with pytest.raises(CheckpointError, match="'other' is a Opaque, not a tensor"):
        read_training_checkpoint(path)


@pytest.mark.parametrize("state", [{"state": {"rank_zero_seed": 1}}, {"state": {"model": {}}}, [1], {"model": 5}])
def test_files_without_the_models_weights_are_named(tmp_path: Path, state: Any) -> None:
    write_zip(tmp_path / "m.pt", state, {})
    with pytest.raises(CheckpointError, match="holds no weights of a model, which Composer saves in"):
        read_training_checkpoint(tmp_path / "m.pt")


def test_a_bin_is_read_as_strictly_as_before(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the file contains .*; only tensors are read"):
        read_torch(write(tmp_path / "pytorch_model.bin"))


def test_two_checkpoints_are_no_choice(tmp_path: Path) -> None:
    write(tmp_path / "a.pt")
    write(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"no weights: .* or one GGUF or \.pt file; found: \['a\.pt', 'b\.pt'\]"):
        find_tensors(tmp_path)


def test_real_objects_of_python_are_not_made(tmp_path: Path) -> None:
    """As Python itself writes them; protocol 2 is torch.save's."""
    import collections
    import datetime
    import fractions

    values = {
        "when": datetime.datetime(2026, 1, 1),
        "delta": datetime.timedelta(1),
        "third": fractions.Fraction(1, 3),
        "ordered": collections.OrderedDict([("a", 1)]),
        "counter": collections.Counter("aab"),
        "bytes": b"abc",
        "big": 10**30,
        "set": {1, 2},
        "array": np.arange(3),
    }
    for protocol in (2, 4):
        data = pickle.dumps({"state": values}, protocol)
        with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
            archive.writestr("archive/data.pkl", data)
        with pytest.raises(CheckpointError, match="holds no weights of a model"):
            read_training_checkpoint(tmp_path / "m.pt")
