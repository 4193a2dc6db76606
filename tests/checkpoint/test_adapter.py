"""PEFT LoRA folders: the base model's weights plus the products of the adapter's matrices, as PEFT merges them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_model import TINY, checkpoint_arrays, random_weights
from torch_writer import write_arrays

from model.checkpoint.folder import find_tensors
from model.checkpoint.load import load_weights
from model.checkpoint.save import save_checkpoint
from model.checkpoint.stored_tensor import CheckpointError
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError
from model.params.weight_format import WeightFormat
from model.params.weights import leaf_paths, weight_specs
from model.pretrained import mpt_from_pretrained, resolve_checkpoint

RANK = 3
QKV, DOWN, WTE = "transformer.blocks.0.attn.Wqkv", "transformer.blocks.1.ffn.down_proj", "transformer.wte"
PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "base_model_name_or_path": "base"}
BASE = checkpoint_arrays(TINY)
RNG = np.random.default_rng(1)


def pair(name: str, rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    """Matrices A [r, K] and B [N, r] for a weight [N, K]."""
    rows, columns = BASE[f"{name}.weight"].shape
    return tuple(RNG.normal(0, 0.2, shape).astype(np.float32) for shape in ((rank, columns), (rows, rank)))  # type: ignore[return-value]


def write(
    tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] = CONFIG, pickled: bool = False
) -> Path:
    save_checkpoint(random_weights(TINY), TINY, tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    if pickled:
        write_arrays(folder / "adapter_model.bin", arrays)
    else:
        save_file(arrays, folder / "adapter_model.safetensors")
    return folder


def loaded(folder: Path, **options: Any) -> dict[str, np.ndarray]:
    config = MptConfig.from_file(folder)
    leaves = leaf_paths(load_weights(folder, config, **options))
    return {spec.name: np.asarray(leaves[spec.path]) for spec in weight_specs(config)}


@pytest.mark.parametrize("pickled", [False, True])
def test_products_are_added(tmp_path: Path, pickled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.checkpoint.stored_tensor.CHUNK_BYTES", 100)  # pieces that are no whole rows
    a, b = pair(QKV)
    c, d = pair(DOWN, 2)
    tensors = {
        f"{PREFIX}{QKV}.lora_A.weight": a,
        f"{PREFIX}{QKV}.lora_B.weight": b,
        f"{PREFIX}{DOWN}.lora_A.default.weight": c,
        f"{PREFIX}{DOWN}.lora_B.default.weight": d,
    }
    patterns = {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r"blocks\.1\.ffn\.down_proj": 8}}
    found = loaded(write(tmp_path, tensors, CONFIG | patterns, pickled))
    expected = BASE | {
        f"{QKV}.weight": BASE[f"{QKV}.weight"] + 2 * (b @ a),
        f"{DOWN}.weight": BASE[f"{DOWN}.weight"] + 4 * (d @ c),
    }
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)
    assert found.keys() == expected.keys()


def test_ranks_may_be_stabilised(tmp_path: Path) -> None:
    a, b = pair(QKV)
    tensors = {f"{PREFIX}{QKV}.lora_A.weight": a, f"{PREFIX}{QKV}.lora_B.weight": b}
    found = loaded(write(tmp_path, tensors, CONFIG | {"use_rslora": True}))
    scale = 6 / RANK**0.5
    np.testing.assert_allclose(found[f"{QKV}.weight"], BASE[f"{QKV}.weight"] + scale * (b @ a), rtol=0, atol=1e-6)


def test_embeddings_have_their_matrices_the_other_way_round(tmp_path: Path) -> None:
    size, width = BASE[f"{WTE}.weight"].shape
    a, b = (RNG.normal(0, 1, shape).astype(np.float32) for shape in ((RANK, size), (width, RANK)))
    tensors = {f"{PREFIX}{WTE}.lora_embedding_A": a, f"{PREFIX}{WTE}.lora_embedding_B": b}
    found = loaded(write(tmp_path, tensors))
    np.testing.assert_allclose(found[f"{WTE}.weight"], BASE[f"{WTE}.weight"] + 2 * (b @ a).T, rtol=0, atol=1e-6)


def test_parameters_trained_as_a_whole_replace_those_of_the_base(tmp_path: Path) -> None:
    norm, up = np.full(16, 7, np.float32), BASE["transformer.blocks.0.ffn.up_proj.weight"] + 1
    tensors = {
        f"{PREFIX}transformer.norm_f.weight": norm,
        f"{PREFIX}transformer.blocks.0.ffn.up_proj.modules_to_save.default.weight": up,
    }
    found = loaded(write(tmp_path, tensors))
    assert np.array_equal(found["transformer.norm_f.weight"], norm)
    assert np.array_equal(found["transformer.blocks.0.ffn.up_proj.weight"], up)


def test_the_merged_weights_have_the_dtype_asked_for(tmp_path: Path) -> None:
    a, b = pair(QKV)
    folder = write(tmp_path, {f"{PREFIX}{QKV}.lora_A.weight": a, f"{PREFIX}{QKV}.lora_B.weight": b})
    assert {array.dtype.name for array in loaded(folder, dtype="bfloat16").values()} == {"bfloat16"}
    assert resolve_checkpoint(folder) == folder


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{PREFIX}lm_head.lora_A.weight": (3, 16), f"{PREFIX}lm_head.lora_B.weight": (40, 3)}, "adapts 'lm_head'"),
        ({f"{PREFIX}{QKV}.lora_A.weight": (3, 16)}, "has only one of lora_A and lora_B"),
        ({f"{PREFIX}{QKV}.lora_A.weight": (3, 8), f"{PREFIX}{QKV}.lora_B.weight": (48, 3)}, r"does not fit \[48, 16\]"),
        ({f"{PREFIX}{QKV}.lora_A.weight": (3, 16), f"{PREFIX}{QKV}.lora_B.weight": (48, 2)}, "different ranks"),
        ({f"{PREFIX}{WTE}.lora_embedding_A": (3,), f"{PREFIX}{WTE}.lora_embedding_B": (3,)}, "does not fit"),
        ({f"{PREFIX}{QKV}.lora_magnitude_vector": (3,)}, "belongs to no parameter of the base model"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str) -> None:
    folder = write(tmp_path, {name: np.ones(shape, np.float32) for name, shape in tensors.items()})
    with pytest.raises(CheckpointError, match=message):
        find_tensors(folder)


def test_an_adapter_without_weights_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="an adapter without weights"):
        find_tensors(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "peft_type": "IA3"}, "peft_type is 'IA3'; LORA adapters are merged"),
        ([], "peft_type is 'list'"),
        ({**CONFIG, "use_dora": True}, "use_dora is True, which is not merged; merge the adapter with PEFT"),
        ({**CONFIG, "init_lora_weights": "pissa_niter_16"}, "init_lora_weights is pissa_niter_16"),
        ({**CONFIG, "r": 0}, "r is 0; it must be a number above 0"),
        ({**CONFIG, "lora_alpha": None}, "lora_alpha is None"),
        ({**CONFIG, "alpha_pattern": {"(": 1}}, "alpha_pattern must be an object"),
        ({**CONFIG, "rank_pattern": [1]}, "rank_pattern must be an object"),
        ({**CONFIG, "base_model_name_or_path": "mosaicml/mpt-7b"}, "'mosaicml/mpt-7b', and no such folder is here"),
        ({**CONFIG, "base_model_name_or_path": None}, "is 'None', and no such folder"),
    ],
)
def test_adapters_that_cannot_be_merged_are_named(tmp_path: Path, config: Any, message: str) -> None:
    folder = write(tmp_path, {}, config)
    with pytest.raises(ConfigError, match=message):
        MptConfig.from_file(folder)


def test_files_that_are_no_configuration_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {})
    file = folder / "adapter_config.json"
    for text, message in {
        "{": "is not JSON",
        "version https://git-lfs.github.com/spec/v1\n": "Git LFS pointer",
    }.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            MptConfig.from_file(folder)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        find_tensors(folder)


def test_quantised_weights_are_cached_for_each_adapter(tmp_path: Path) -> None:
    a, b = pair(QKV)
    folder = write(tmp_path, {f"{PREFIX}{QKV}.lora_A.weight": a, f"{PREFIX}{QKV}.lora_B.weight": b})
    base, cache = tmp_path / "base", tmp_path / "cache"

    def data(folder: Path) -> bytes:
        weights, _ = mpt_from_pretrained(folder, format=WeightFormat("int8"), cache_dir=cache)
        return np.asarray(weights.blocks[0].attn.wqkv.weight.data).tobytes()  # type: ignore[union-attr]

    first = data(folder)
    assert data(base) != first == data(folder)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"lora_alpha": 60}))
    assert data(folder) != first
