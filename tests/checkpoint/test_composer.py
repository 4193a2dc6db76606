"""Checkpoints of Composer: the model's weights are read, the optimizer's are not, and nothing in them is called."""

import collections
import contextlib
import datetime
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import TINY, checkpoint_arrays
from torch_writer import (
    FakeTensor,
    Global,
    Raw,
    Reduce,
    dense_view,
    pickled_with_python,
    write_arrays,
    write_zip,
)

from model.checkpoint import torch_pickle
from model.checkpoint.folder import find_tensors
from model.checkpoint.load import load_weights
from model.checkpoint.stored_tensor import CheckpointError, read_whole
from model.checkpoint.torch_file import read_torch, read_training_checkpoint
from model.checkpoint.weight_names import canonical_name
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


def training_state(model: dict[str, Any], extra: Any = None) -> dict[str, Any]:
    """Return what a run of Composer saves, around the model's state dict."""
    return {
        "state": {
            "model": collections.OrderedDict(model),
            "optimizers": {"DecoupledAdamW": {"state": {name: {"exp_avg": value} for name, value in model.items()}}},
            "callbacks": [("SpeedMonitor", {"history": collections.deque([1.5, 2.5], maxlen=3)})],
            "schedulers": [("CosineAnnealing", {"base_lrs": [1e-4], "_step_count": 10**12})],
            "timestamp": {"Timestamp": {"epoch": 0, "total_wct": datetime.timedelta(seconds=5)}},
            "integrations": {"huggingface": {"tokenizer": {"vocab.json": {"content": {"a": 0, "b": 1}}}}},
            "extra": extra,
        },
        "rng": [{"python": random.getstate(), "numpy": np.random.RandomState(0).get_state(), "torch": None}],
        "extra": extra,
    }


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: read_whole(tensor) for name, tensor in read_training_checkpoint(path).items()}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
        | st.frozensets(st.integers(), max_size=3)
        | st.sets(st.text(max_size=2), max_size=3)
        | st.binary(max_size=3).map(bytearray)
        | inner.map(lambda value: [value, value])
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(extra=PLAIN, protocol=st.sampled_from([2, 3, 4, 5]))
def test_weights_are_found_between_any_objects(
    tmp_path_factory: pytest.TempPathFactory, extra: Any, protocol: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "m.pt"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = training_state({"model.transformer.wte.weight": FakeTensor("0", array.shape)}, extra)
    write_zip(path, pickled_with_python(state, protocol), {"0": array.tobytes()})
    assert np.array_equal(read_arrays(path)["model.transformer.wte.weight"], array)


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.model._fsdp_wrapped_module.transformer.blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.norm_1",
        "model._orig_mod.transformer.blocks.0.norm_1",
        "_orig_mod.model.transformer.blocks.0._checkpoint_wrapped_module.norm_1",
    ],
)
def test_names_of_wrapped_modules_are_understood(wrapped: str) -> None:
    assert canonical_name(f"{wrapped}.weight") == "transformer.blocks.0.norm_1.weight"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model._fsdp_wrapped_module._flat_param", dense_view("0", np.zeros(3, np.float32))),
        (
            "model.transformer.wpe.weight",
            Reduce(Global("torch.distributed._shard.sharded_tensor", "ShardedTensor"), ()),
        ),
        ("model.transformer.wpe.weight", Reduce(Global("torch.distributed.tensor", "DTensor"), ())),
    ],
)
def test_parts_of_ranks_are_refused_with_the_way_to_consolidate_them(tmp_path: Path, name: str, value: Any) -> None:
    path = write(tmp_path / "ep0-ba1-rank3.pt", **{name: value})
    with pytest.raises(CheckpointError, match=r"is a part of a parameter; .*consolidated first.*dcp_to_torch_save"):
        read_training_checkpoint(path)


def test_pickles_that_take_too_long_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_INSTRUCTIONS", 1000)
    write_zip(tmp_path / "m.pt", {"state": Raw(b"(" + b"]" * 2000 + b"l")}, {})
    with pytest.raises(CheckpointError, match="the pickle has more than 1000 instructions"):
        read_training_checkpoint(tmp_path / "m.pt")


def test_unknown_kinds_of_tensors_beside_the_model_are_left_out(tmp_path: Path) -> None:
    quantised = Reduce(
        Global("torch._utils", "_rebuild_qtensor"), dense_view("0", np.zeros(3, np.float32)).pickled().arguments
    )
    write_zip(
        tmp_path / "m.pt",
        {"state": {"model": {"a": dense_view("0", np.ones(3, np.float32))}, "q": quantised}},
        {"0": np.ones(3, np.float32).tobytes()},
    )
    assert np.array_equal(read_arrays(tmp_path / "m.pt")["a"], np.ones(3))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any byte changed, or any end cut off: a message, and never another exception."""
    path = tmp_path_factory.mktemp("damaged") / "m.pt"
    array = np.arange(6, dtype=np.float32)
    write_zip(path, pickled_with_python(training_state({"a": FakeTensor("0", (6,))})), {"0": array.tobytes()})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        read_arrays(path)
