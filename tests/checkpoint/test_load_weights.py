"""load_weights: every layout of a folder, every naming, and refusals that say what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_model import TINY, checkpoint_arrays
from torch_writer import View, dense_view, write_arrays, write_zip

from model.checkpoint.load import load_weights
from model.checkpoint.stored_tensor import CheckpointError, aligned_empty
from model.config.mpt_config import MptConfig
from model.params.weights import Weights, leaf_paths, weight_specs

FULL = TINY | {  # every kind of parameter that a model can have
    "no_bias": False,
    "tie_word_embeddings": False,
    "attn_config": {"alibi": False, "attn_type": "grouped_query_attention", "kv_n_heads": 2, "qk_ln": True},
    "ffn_config": {"ffn_type": "mptglu"},
}
CONFIG = MptConfig.from_dict(TINY)


def write(folder: Path, arrays: dict[str, np.ndarray], name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / name)
    return folder


def assert_holds(weights: Weights, arrays: dict[str, np.ndarray], config: MptConfig) -> None:
    leaves = leaf_paths(weights)
    specs = weight_specs(config)
    assert leaves.keys() == {spec.path for spec in specs}
    for spec in specs:
        assert leaves[spec.path].dtype == arrays[spec.name].dtype, spec.name
        np.testing.assert_array_equal(leaves[spec.path], arrays[spec.name], err_msg=spec.name)


def refusal(folder: Path, config: MptConfig = CONFIG) -> str:
    with pytest.raises(CheckpointError) as error:
        load_weights(folder, config)
    return str(error.value)


@pytest.mark.parametrize("layout", ["safetensors", "sharded safetensors", "bin", "legacy bin", "sharded bin"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_layout(tmp_path: Path, layout: str, dtype: Any) -> None:
    arrays = checkpoint_arrays(FULL, dtype=dtype)
    halves = [dict(list(arrays.items())[part::2]) for part in range(2)]
    if layout == "safetensors":
        save_file(arrays, tmp_path / "model.safetensors")
    elif layout == "sharded safetensors":
        shards = [f"model-0000{part + 1}-of-00002.safetensors" for part in range(2)]
        for shard, half in zip(shards, halves, strict=True):
            save_file(half, tmp_path / shard)
        write_index(tmp_path / "model.safetensors.index.json", dict(zip(shards, halves, strict=True)))
    elif layout == "sharded bin":
        shards = [f"pytorch_model-0000{part + 1}-of-00002.bin" for part in range(2)]
        for shard, half in zip(shards, halves, strict=True):
            write_arrays(tmp_path / shard, half)
        write_index(tmp_path / "pytorch_model.bin.index.json", dict(zip(shards, halves, strict=True)))
    else:
        write_arrays(tmp_path / "pytorch_model.bin", arrays, legacy=layout == "legacy bin")
    config = MptConfig.from_dict(FULL)
    assert_holds(load_weights(tmp_path, config), arrays, config)


def write_index(path: Path, shards: dict[str, Any]) -> None:
    weight_map = {name: shard for shard, arrays in shards.items() for name in arrays}
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    arrays = checkpoint_arrays(TINY)
    write(tmp_path, arrays)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    assert_holds(load_weights(tmp_path, CONFIG), arrays, CONFIG)


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", [jnp.float32, "float16", jnp.bfloat16, None])
def test_dtypes(tmp_path: Path, stored: Any, dtype: Any) -> None:
    arrays = checkpoint_arrays(TINY, dtype=stored)
    target = np.dtype(np.float32 if stored == np.float64 else stored) if dtype is None else jnp.dtype(dtype)
    expected = {name: array.astype(target) for name, array in arrays.items()}
    assert_holds(load_weights(write(tmp_path / "x", arrays), CONFIG, dtype), expected, CONFIG)


def test_conversion_over_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.checkpoint.stored_tensor.CHUNK_BYTES", 48)
    arrays = checkpoint_arrays(TINY, dtype=ml_dtypes.bfloat16)
    expected = {name: array.astype(np.float32) for name, array in arrays.items()}
    assert_holds(load_weights(write(tmp_path / "x", arrays), CONFIG, "float32"), expected, CONFIG)


@pytest.mark.parametrize(
    ("stored", "target", "value"),
    [(np.float32, "float16", -1e5), (np.float64, "float32", 1e39), (np.float64, None, 1e39)],
)
def test_numbers_beyond_the_target(tmp_path: Path, stored: Any, target: Any, value: float) -> None:
    arrays = checkpoint_arrays(TINY, dtype=stored)
    arrays["transformer.norm_f.weight"][3] = value
    folder = write(tmp_path / "x", arrays)
    with pytest.raises(CheckpointError, match=rf"'transformer\.norm_f\.weight' holds .*beyond {target or 'float32'}'s"):
        load_weights(folder, CONFIG, target)
    arrays["transformer.norm_f.weight"][3] = -np.inf  # in the file already: not this loader's to judge
    load_weights(write(tmp_path / "x", arrays), CONFIG, target)


@pytest.mark.parametrize("dtype", ["int8", "float64"])
def test_other_targets_are_refused(save: Callable[..., Path], dtype: str) -> None:
    with pytest.raises(ValueError, match=f"dtype {dtype} is not one of bfloat16, float16, float32"):
        load_weights(save(), CONFIG, dtype)


def old_name(name: str) -> str:
    for new, old in {"norm_": "ln_", "ffn.up_proj": "mlp.mlp_up", "ffn.down_proj": "mlp.mlp_down"}.items():
        name = name.replace(new, old)
    return name


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(old_name, id="mosaic_gpt"),
        pytest.param(lambda name: f"model.{name}", id="composer"),
        pytest.param(lambda name: name.removeprefix("transformer."), id="bare MPTModel"),
    ],
)
def test_names_of_other_releases(tmp_path: Path, rename: Callable[[str], str]) -> None:
    arrays = checkpoint_arrays(TINY)
    folder = write(tmp_path / "x", {rename(name): array for name, array in arrays.items()})
    assert_holds(load_weights(folder, CONFIG), arrays, CONFIG)


@pytest.mark.parametrize("fused_in_config", [True, False])
def test_separate_q_k_v(tmp_path: Path, fused_in_config: bool) -> None:
    config = MptConfig.from_dict(FULL | {"attn_config": FULL["attn_config"] | {"fused_qkv": fused_in_config}})
    arrays = checkpoint_arrays(FULL)
    split = {name: array for name, array in arrays.items() if "Wqkv" not in name}
    for name in arrays.keys() - split.keys():
        parts = np.split(arrays[name], (16, 16 + 8))  # 4 query heads and 2 key heads of 4
        split |= {name.replace("Wqkv", f"W{part}"): array for part, array in zip("qkv", parts, strict=True)}
    assert_holds(load_weights(write(tmp_path / "x", split), config), arrays, config)
    del split["transformer.blocks.1.attn.Wk.bias"]
    message = refusal(write(tmp_path / "x", split), config)
    assert "1 missing: transformer.blocks.1.attn.Wk.bias" in message


def test_saved_buffers_are_passed_over(tmp_path: Path) -> None:
    arrays = checkpoint_arrays(TINY)
    buffers = {
        "transformer.attn_bias": np.zeros((1, 4, 1, 32), np.float32),
        "transformer.rotary_embedding.inv_freq": np.zeros(2, np.float32),
        "transformer.blocks.0.attn.bias": np.ones((1, 1, 32, 32), np.bool_),
        "transformer.blocks.1.attn.masked_bias": np.zeros(1, np.int64),
        "model.transformer.blocks.1.attn.rotary_emb.inv_freq": np.zeros(2, np.float32),
    }
    assert_holds(load_weights(write(tmp_path / "x", arrays | buffers), CONFIG), arrays, CONFIG)


def test_tied_head_saved_twice(tmp_path: Path) -> None:
    arrays = checkpoint_arrays(TINY)
    head = arrays["transformer.wte.weight"].copy()
    assert_holds(load_weights(write(tmp_path / "x", arrays | {"lm_head.weight": head}), CONFIG), arrays, CONFIG)
    head[0, 0] += 1
    message = refusal(write(tmp_path / "x", arrays | {"lm_head.weight": head}))
    assert "'lm_head.weight' [40, 16] differs from 'transformer.wte.weight'" in message
    assert "tie_word_embeddings" in message
    assert "differs" in refusal(write(tmp_path / "x", arrays | {"lm_head.weight": head[:1]}))


@pytest.mark.parametrize("differs", [False, True])
def test_tied_head_in_another_layout(tmp_path: Path, differs: bool) -> None:
    """The embedding column-major, its copy row-major: compared by numbers, not by how they lie."""
    arrays = checkpoint_arrays(TINY)
    embedding = arrays["transformer.wte.weight"]
    head = embedding + differs
    state = {name: dense_view(name, array) for name, array in (arrays | {"lm_head.weight": head}).items()}
    state["transformer.wte.weight"] = View("columns", np.float32, 640, 0, (40, 16), (1, 40))
    storages = {name: array.tobytes() for name, array in arrays.items()}
    storages |= {"lm_head.weight": head.tobytes(), "columns": embedding.T.tobytes()}
    write_zip(tmp_path / "pytorch_model.bin", state, storages)
    if differs:
        assert "differs" in refusal(tmp_path)
    else:
        assert_holds(load_weights(tmp_path, CONFIG), arrays, CONFIG)


def test_untied_head_must_be_there(tmp_path: Path) -> None:
    message = refusal(
        write(tmp_path / "x", checkpoint_arrays(TINY)), MptConfig.from_dict(TINY | {"tie_word_embeddings": False})
    )
    assert "1 missing: lm_head.weight" in message


def test_all_differences_are_listed_at_once(tmp_path: Path) -> None:
    arrays = checkpoint_arrays(TINY)
    del arrays["transformer.norm_f.weight"], arrays["transformer.blocks.0.ffn.up_proj.weight"]
    arrays["transformer.wte.weight"] = np.zeros((41, 16), np.float32)
    arrays["transformer.blocks.1.norm_1.weight"] = np.ones(16, np.int32)
    arrays["transformer.blocks.1.norm_1.bias"] = np.ones(16, np.float32)
    message = refusal(write(tmp_path / "x", arrays))
    assert "2 missing: transformer.blocks.0.ffn.up_proj.weight, transformer.norm_f.weight" in message
    assert "1 unknown: transformer.blocks.1.norm_1.bias" in message
    assert "1 of another shape: transformer.wte.weight [41, 16], by the config [40, 16]" in message
    assert "1 not floats: transformer.blocks.1.norm_1.weight (int32)" in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    extra = {f"adapter.{index:02}": np.ones(1, np.float32) for index in range(25)}
    message = refusal(write(tmp_path / "x", checkpoint_arrays(TINY) | extra))
    assert "25 unknown" in message
    assert "adapter.09 and 15 more" in message
    assert "adapter.10" not in message


@pytest.mark.parametrize("name", ["ffn.act.scales", "attn.Wqkv.qweight", "attn.Wqkv.g_idx"])
def test_quantised_checkpoints(tmp_path: Path, name: str) -> None:
    name = f"transformer.blocks.0.{name}"
    message = refusal(write(tmp_path / "x", checkpoint_arrays(TINY) | {name: np.ones(16, np.float32)}))
    assert name in message
    assert "quantised" in message


def test_one_parameter_under_two_names(tmp_path: Path) -> None:
    arrays = checkpoint_arrays(TINY)
    arrays["transformer.ln_f.weight"] = arrays["transformer.norm_f.weight"]
    message = refusal(write(tmp_path / "x", arrays))
    assert "'transformer.ln_f.weight'" in message
    assert "'transformer.norm_f.weight'" in message


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    message = refusal(tmp_path)
    assert "pytorch_model.bin.index.json" in message
    assert "notes.txt" in message
    assert "no such folder" in refusal(tmp_path / "absent")


def test_missing_shard(tmp_path: Path) -> None:
    arrays = checkpoint_arrays(TINY)
    write(tmp_path, arrays, "model-00001-of-00002.safetensors")
    index = {"model-00001-of-00002.safetensors": arrays, "model-00002-of-00002.safetensors": ["more"]}
    write_index(tmp_path / "model.safetensors.index.json", index)
    message = refusal(tmp_path)
    assert "1 of the 2 shards" in message
    assert "model-00002-of-00002.safetensors" in message


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    arrays = checkpoint_arrays(TINY)
    write(tmp_path, arrays, "one.safetensors")
    write_index(tmp_path / "model.safetensors.index.json", {"one.safetensors": [*arrays, "lost"]})
    assert "1 tensors are not in the shard that it names: lost" in refusal(tmp_path)
    write(tmp_path, {"transformer.wte.weight": arrays["transformer.wte.weight"]}, "two.safetensors")
    write_index(tmp_path / "model.safetensors.index.json", {"one.safetensors": arrays, "two.safetensors": ["lost"]})
    assert "'transformer.wte.weight' is in both" in refusal(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"w": 3}}', "[" * 100_000, '{"weight_map": {"w": "../x"}}'],
)
def test_damaged_index(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(tmp_path)


def test_cpu_adopts_the_buffers(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX takes over what the file was read into, without a copy."""
    buffers = []

    def remember(*args: Any) -> np.ndarray:
        buffers.append(aligned_empty(*args))
        return buffers[-1]

    monkeypatch.setattr("model.checkpoint.load.aligned_empty", remember)
    cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    weights = load_weights(save(), CONFIG, shardings=cpu)
    adopted = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(weights)}
    assert adopted == {buffer.ctypes.data for buffer in buffers}


def test_progress(save: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = save()
    load_weights(folder, CONFIG)
    load_weights(folder, CONFIG, progress=False)
    assert capsys.readouterr() == ("", ""), "silent without a terminal"
    load_weights(folder, CONFIG, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Loading weights" in err
