"""Checkpoints in other formats: every number stays, and what a format cannot represent is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_model import TINY

from model.checkpoint import convert
from model.checkpoint.convert import Checkpoint, check_same_numbers, keeps_every_number, write_safetensors
from model.checkpoint.convert_gguf import GGUF_TYPES, write_gguf
from model.checkpoint.safetensors_file import read_safetensors
from model.checkpoint.stored_tensor import CheckpointError
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError

MODEL = {**TINY, "d_model": 64, "bos_token_id": 0, "eos_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped queries": {"attn_config": {"alibi": True, "attn_type": "grouped_query_attention", "kv_n_heads": 2}},
    "separate matrices": {"attn_config": {"alibi": True, "fused_qkv": False}},
    "biases and learned positions": {"no_bias": False, "attn_config": {"qk_ln": True}},
    "separate head": {"tie_word_embeddings": False},
    "StoryWriter": {"attn_config": {"alibi": True, "alibi_bias_max": 16, "clip_qkv": 6}},
    "gated": {"ffn_config": {"ffn_type": "mptglu"}},
}


def numbers(path: Path) -> dict[str, bytes]:
    checkpoint = Checkpoint.open(path)
    return {
        s.spec.name: checkpoint.read(s, s.parts[0].dtype).tobytes() + s.parts[0].dtype.name.encode()
        for s in checkpoint.sources
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_changes_no_bit(save: Callable[..., Path], tmp_path: Path, name: str, dtype: str) -> None:
    source = save({**MODEL, **CONFIGS[name]}, dtype=dtype)
    write_safetensors(Checkpoint.open(source), tmp_path / "lf", "llm-foundry")
    assert numbers(tmp_path / "lf") == numbers(source)
    assert MptConfig.from_file(tmp_path / "lf") == MptConfig.from_file(source)
    kind = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
    write_gguf(Checkpoint.open(source), tmp_path / "m.gguf", kind)
    write_safetensors(Checkpoint.open(tmp_path / "m.gguf"), tmp_path / "back", "llm-foundry", dtype)
    assert numbers(tmp_path / "back") == numbers(source)


def test_transformers_reads_its_form(save: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = {**MODEL, "attn_config": {"alibi": True, "clip_qkv": 6, "softmax_scale": 0.3, "fused_qkv": False}}
    source = save(config)
    write_safetensors(Checkpoint.open(source), tmp_path / "hf", "transformers")
    theirs = AutoConfig.from_pretrained(str(tmp_path / "hf"))
    assert (theirs.d_model, theirs.n_heads, theirs.attn_config.clip_qkv) == (64, 4, 6.0)
    assert theirs.attn_config.softmax_scale == 0.3
    assert numbers(tmp_path / "hf") == numbers(source)
    names = set(read_safetensors(tmp_path / "hf" / "model.safetensors"))
    assert "transformer.blocks.0.attn.Wqkv.weight" in names


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attn_config": {"alibi": True, "alibi_bias_max": 16}}, r"alibi_bias_max \(16"),
        ({"no_bias": False}, r"bias \(True\)"),
        ({"expansion_ratio": 2}, r"ffn_hidden_size \(128\)"),
        ({"logit_scale": 2}, r"logit_scale \(2"),
    ],
)
def test_what_transformers_would_ignore_is_named(
    save: Callable[..., Path], tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"cannot represent this model.*{message}"):
        write_safetensors(Checkpoint.open(save({**MODEL, **keys})), tmp_path / "hf", "transformers")


def test_what_gguf_has_no_place_for_is_named(save: Callable[..., Path], tmp_path: Path) -> None:
    source = save({**MODEL, "logit_scale": 2, "attn_config": {"alibi": True, "softmax_scale": 0.3}})
    with pytest.raises(ConfigError, match=r"no place for softmax_scale \(0\.3\), logit_scale \(2\.0\)"):
        write_gguf(Checkpoint.open(source), tmp_path / "m.gguf", "f16")
    assert list(tmp_path.glob("*.gguf")) == []


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_gguf_types_are_gguf_pys(save: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    source = Checkpoint.open(save({**MODEL, "expansion_ratio": 0.75}))  # rows of 48 numbers are no whole blocks
    write_gguf(source, tmp_path / "m.gguf", kind)
    read = Checkpoint.open(tmp_path / "m.gguf")
    for ours, theirs in zip(source.sources, read.sources, strict=True):
        given, found = source.read(ours, np.dtype(np.float32)), read.read(theirs, np.dtype(np.float32))
        matrix = given.ndim == 2
        chosen = kind.upper() if matrix else "F32"
        chosen = "F16" if kind.startswith("q") and given.shape[-1] % 32 else chosen
        number = gguf.GGMLQuantizationType[chosen]
        expected = gguf.quants.dequantize(gguf.quants.quantize(given, number), number)
        assert np.array_equal(found, expected.reshape(given.shape)), ours.spec.name
    assert {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors} >= {"F32", kind.upper()}


def test_large_checkpoints_have_shards_that_stay_when_it_is_repeated(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_MAX_SHARD_BYTES", 40_000)
    source = Checkpoint.open(save(MODEL))
    write_safetensors(source, tmp_path / "out", "llm-foundry")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert numbers(tmp_path / "out") == numbers(source.path)
    first, last = shards[0].stat().st_mtime_ns, shards[-1]
    last.unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    write_safetensors(source, tmp_path / "out", "llm-foundry")
    assert shards[0].stat().st_mtime_ns == first
    assert numbers(tmp_path / "out") == numbers(source.path)


@pytest.mark.parametrize("form", ["llm-foundry", "gguf"])
def test_copies_that_differ_are_found(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    source = Checkpoint.open(save(MODEL))
    write = {
        "llm-foundry": lambda: write_safetensors(source, tmp_path / "out", form),
        "gguf": lambda: write_gguf(source, tmp_path / "out.gguf", "f32"),
    }[form]
    write()
    file = tmp_path / {"llm-foundry": "out/model.safetensors", "gguf": "out.gguf"}[form]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'transformer\.\S+' is not what it was converted from"):
        write()  # finds a file of the right size
    with pytest.raises(CheckpointError, match="is not what it was converted from"):
        check_same_numbers(source, Checkpoint.open(file if form == "gguf" else file.parent))


def test_configs_that_describe_another_model_are_found(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = convert._write_json
    monkeypatch.setattr(convert, "_write_json", lambda path, data: real(path, {**data, "logit_scale": 3}))
    with pytest.raises(CheckpointError, match="describes another model"):
        write_safetensors(Checkpoint.open(save(MODEL)), tmp_path / "out", "llm-foundry")


@pytest.mark.parametrize("cut", [0, 1, 100, 5_000, 100_000, None])
def test_a_gguf_file_is_continued_wherever_it_was_interrupted(
    save: Callable[..., Path], tmp_path: Path, cut: int | None
) -> None:
    source, file = Checkpoint.open(save(MODEL)), tmp_path / "m.gguf"
    write_gguf(source, file, "q8_0")
    complete = file.read_bytes()
    file.write_bytes(complete[:cut] if cut is not None else complete + b"more")
    write_gguf(source, file, "q8_0")
    assert file.read_bytes() == complete
    write_gguf(source, file, "q4_0")
    assert len(file.read_bytes()) < len(complete)


def test_which_types_hold_every_number(save: Callable[..., Path], tmp_path: Path) -> None:
    for dtype, holding in {"float32": {"f32"}, "bfloat16": {"f32", "bf16"}, "float16": {"f32", "f16"}}.items():
        source = Checkpoint.open(save(MODEL, dtype=dtype, overwrite=True))
        for kind in GGUF_TYPES:
            file = tmp_path / f"{dtype}-{kind}.gguf"
            write_gguf(source, file, kind)
            assert keeps_every_number(source, Checkpoint.open(file)) == (kind in holding)


def test_what_a_conversion_depends_on_is_its_identity(save: Callable[..., Path]) -> None:
    source = Checkpoint.open(save(MODEL))
    identity = source.identity("gguf", "q8_0")
    assert Checkpoint.open(source.path).identity("gguf", "q8_0") == identity
    assert source.identity("gguf", "q4_0") != identity
    file = source.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert Checkpoint.open(source.path).identity("gguf", "q8_0") != identity


def test_k_quants_are_what_gguf_py_cannot_write() -> None:
    """When this fails, gguf-py writes more types: add them to GGUF_TYPES, and to docs/formats.md."""
    blocks = np.zeros((1, 256), np.float32)
    for kind in gguf.GGMLQuantizationType:
        if kind.name[0] == "Q" and kind.name.endswith("_K"):
            with pytest.raises(NotImplementedError):
                gguf.quants.quantize(blocks, kind)


def test_the_older_dialect_becomes_the_newer_one(save: Callable[..., Path], tmp_path: Path) -> None:
    source = save({**MODEL, "attn_config": {"alibi": True, "qk_ln": True}})
    file = source / "config.json"
    old = {**MODEL, "model_type": "mosaic_gpt", "alibi": True, "attn_qk_ln": True}
    old.pop("attn_config")
    file.write_text(json.dumps(old))
    write_safetensors(Checkpoint.open(source), tmp_path / "out", "llm-foundry")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["attn_config"]["qk_ln"]) == ("mpt", True)
    assert MptConfig.from_file(tmp_path / "out").qk_norm == "ln"
