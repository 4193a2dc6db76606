"""save_checkpoint: what is saved is loaded again, and a folder always holds a whole checkpoint."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_model import TINY, random_weights

from model.checkpoint.load import load_weights
from model.checkpoint.save import save_checkpoint
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError
from model.params.weights import Weights
from model.pretrained import mpt_from_pretrained


def assert_same(left: Weights, right: Weights) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    biases=st.booleans(),
    tied=st.booleans(),
    kv_heads=st.sampled_from([1, 2, 4]),
    attention=st.fixed_dictionaries({"alibi": st.booleans(), "qk_ln": st.booleans(), "fused_qkv": st.booleans()}),
    ffn=st.sampled_from(["mptmlp", "mptglu"]),
    dtype=st.sampled_from([None, "bfloat16", "float16", "float32"]),
    max_shard_bytes=st.sampled_from([1, 3000, 10**9]),
)
def test_roundtrip(
    tmp_path: Path,
    biases: bool,
    tied: bool,
    kv_heads: int,
    attention: dict[str, Any],
    ffn: str,
    dtype: str | None,
    max_shard_bytes: int,
) -> None:
    heads = {"attn_type": "grouped_query_attention", "kv_n_heads": kv_heads}
    config = TINY | {"no_bias": not biases, "tie_word_embeddings": tied, "ffn_config": {"ffn_type": ffn}}
    config["attn_config"] = attention | heads
    weights = random_weights(config)
    save_checkpoint(weights, config, tmp_path, dtype, max_shard_bytes, overwrite=True)
    loaded, parsed = mpt_from_pretrained(tmp_path)
    expected = weights if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), weights)
    assert_same(loaded, expected)
    assert parsed.torch_dtype == dtype or (dtype is None and parsed.torch_dtype == "float32")


def test_names_and_files_are_the_published_ones(tmp_path: Path) -> None:
    config = TINY | {"attn_config": {"alibi": True, "fused_qkv": False}}
    save_checkpoint(random_weights(config), config, tmp_path, jnp.bfloat16)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert {"transformer.wte.weight", "transformer.blocks.1.attn.Wk.weight", "transformer.norm_f.weight"} <= names
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {"architectures": ["MPTForCausalLM"], **config, "torch_dtype": "bfloat16"}


def test_shards_and_index(tmp_path: Path) -> None:
    save_checkpoint(random_weights(TINY), TINY, tmp_path, max_shard_bytes=5000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(random_weights(TINY))]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert all(file.stat().st_size < 5000 + 2000 for file in files)


def test_existing_weights_are_kept_without_overwrite(tmp_path: Path) -> None:
    first, second = random_weights(TINY, seed=1), random_weights(TINY, seed=2)
    save_checkpoint(first, TINY, tmp_path)
    with pytest.raises(FileExistsError, match=r"model\.safetensors"):
        save_checkpoint(second, TINY, tmp_path)
    assert_same(load_weights(tmp_path, MptConfig.from_dict(TINY)), first)
    save_checkpoint(second, TINY, tmp_path, max_shard_bytes=5000, overwrite=True)
    assert_same(load_weights(tmp_path, MptConfig.from_dict(TINY)), second)


def test_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = random_weights(TINY, seed=1)
    save_checkpoint(first, TINY, tmp_path)

    def full_disk(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("model.checkpoint.save.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(random_weights(TINY, seed=2), TINY, tmp_path, overwrite=True)
    assert_same(load_weights(tmp_path, MptConfig.from_dict(TINY)), first)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_weights_of_another_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the first is 'blocks/2/attn/out_proj/weight': absent instead of \(16, 16\)"):
        save_checkpoint(random_weights(TINY), TINY | {"n_layers": 3}, tmp_path)
    with pytest.raises(ConfigError, match="d_model"):
        save_checkpoint(random_weights(TINY), {"n_layers": 3}, tmp_path)
    assert not any(tmp_path.iterdir())
