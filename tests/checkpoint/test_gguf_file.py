"""GGUF files: config and tensors are those of the checkpoint that they were made from, numbers those of gguf-py."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf_writer import QUANTISED, write_gguf
from tiny_model import TINY, checkpoint_arrays

from model.checkpoint.folder import find_tensors
from model.checkpoint.gguf_file import family_name, read_gguf
from model.checkpoint.load import load_weights
from model.checkpoint.stored_tensor import CheckpointError, read_tensor
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError
from model.gguf.header import GgufError, find_gguf, read_header
from model.gguf.types import TENSOR_TYPES
from model.params.weights import leaf_paths
from model.pretrained import mpt_from_pretrained, resolve_checkpoint

ATTN = {"alibi": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "MPT-7B": {},
    "StoryWriter": {"attn_config": {"alibi": True, "alibi_bias_max": 16, "clip_qkv": 6}},
    "learned positions and biases": {"no_bias": False, "attn_config": {"qk_ln": True}},
    "a separate head": {"tie_word_embeddings": False, "expansion_ratio": 2},
    "grouped queries": {"attn_config": {**ATTN, "attn_type": "grouped_query_attention", "kv_n_heads": 2}},
    "one norm for all heads": {"attn_config": {**ATTN, "qk_gn": True}},
    "gated": {"ffn_config": {"ffn_type": "mptglu"}},
    "a bias on queries alone": {"attention_bias": True},
}


def config_of(name: str) -> dict[str, Any]:
    return {**TINY, **CONFIGS[name]}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_the_checkpoint_it_was_made_from(tmp_path: Path, name: str) -> None:
    config = MptConfig.from_dict(config_of(name))
    arrays = checkpoint_arrays(config_of(name))
    path = write_gguf(tmp_path / "m.gguf", config, arrays)
    read = MptConfig.from_file(path)
    assert read == MptConfig.from_dict({**config_of(name), "torch_dtype": "float32"})
    weights = leaf_paths(load_weights(path, read))
    expected = {family_name_of(path): array for path, array in arrays.items()}
    assert {spec: np.asarray(leaf).tolist() for spec, leaf in weights.items()} == {
        spec: array.tolist() for spec, array in expected.items()
    }


def family_name_of(name: str) -> str:
    """The path in `Weights` of a parameter by llm-foundry's name."""
    from model.params.weights import weight_specs

    return next(s.path for c in CONFIGS for s in weight_specs(MptConfig.from_dict(config_of(c))) if s.name == name)


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: str(kind.name))
def test_every_type_has_gguf_pys_numbers_bit_for_bit(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    elements, nbytes = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(int(kind)).integers(0, 256, (3, 2 * nbytes), np.uint8)
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "mpt")
    writer.add_tensor("token_embd.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(path)["transformer.wte.weight"]
    assert tensor.shape == (3, 2 * elements)
    assert tensor.nbytes == data.nbytes or tensor.blocks is None
    read = np.empty(tensor.shape, tensor.dtype)
    with np.errstate(all="ignore"):
        read_tensor(tensor, read)
        (theirs,) = GGUFReader(path).tensors
        expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
    assert read.astype(np.float32).view(np.uint32).tolist() == expected.view(np.uint32).tolist()


def test_long_tensors_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.checkpoint.stored_tensor.CHUNK_BYTES", 4 * 32 * 3)
    config = MptConfig.from_dict({**TINY, "d_model": 64})
    path = write_gguf(
        tmp_path / "m.gguf", config, checkpoint_arrays({**TINY, "d_model": 64}), kind=GGMLQuantizationType.Q8_0
    )
    tensor = read_gguf(path)["transformer.wte.weight"]
    read = np.empty(tensor.shape, np.float32)
    read_tensor(tensor, read)
    theirs = next(t for t in GGUFReader(path).tensors if t.name == "token_embd.weight")
    assert np.array_equal(read, gguf.quants.dequantize(theirs.data, theirs.tensor_type))


def test_quantised_files_load_and_may_be_quantised_again(tmp_path: Path) -> None:
    values = {**TINY, "d_model": 64}
    path = write_gguf(
        tmp_path / "m.gguf", MptConfig.from_dict(values), checkpoint_arrays(values), kind=GGMLQuantizationType.Q4_0
    )
    weights, config = mpt_from_pretrained(path, dtype="bfloat16")
    assert config.torch_dtype == "float32"
    assert {str(leaf.dtype) for leaf in leaf_paths(weights).values()} == {"bfloat16"}


def test_types_are_those_of_gguf_py() -> None:
    assert {TENSOR_TYPES[int(kind)][1:] for kind in GGML_QUANT_SIZES} == {
        (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", MptConfig.from_dict(TINY), checkpoint_arrays(TINY))


def test_a_folder_of_one_file_is_that_file(path: Path) -> None:
    assert find_gguf(path.parent) == path == resolve_checkpoint(path.parent) == resolve_checkpoint(path)
    (path.parent / "config.json").write_text("{}")
    assert resolve_checkpoint(path.parent) == path.parent  # whose weights are in the file
    assert len(find_tensors(path.parent)) == len(read_gguf(path))
    path.with_name("other.gguf").write_bytes(path.read_bytes())
    assert find_gguf(path.parent) is None


def test_files_may_be_split(path: Path) -> None:
    whole = read_gguf(path)
    names = list(read_header(path).tensors)
    parts = [path.with_name(f"p-{i:05d}-of-00002.gguf") for i in (1, 2)]
    for part, chosen in zip(parts, (names[:5], names[5:]), strict=True):
        writer = GGUFWriter(part, "mpt")
        writer.add_uint16("split.count", 2)
        for tensor in GGUFReader(path).tensors:
            if tensor.name in chosen:
                writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert read_gguf(parts[0]).keys() == whole.keys()
    path.unlink()
    assert find_gguf(path.parent) == parts[0]
    with pytest.raises(CheckpointError, match="name the first part"):
        read_gguf(parts[1])
    parts[1].rename(path)
    with pytest.raises(CheckpointError, match=r"1 of its 2 parts are missing: p-00002-of-00002\.gguf"):
        read_gguf(parts[0])


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"GGML" + data[4:], "does not begin with 'GGUF'"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1 is not read"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "version 50331648 is not read"),
        (lambda data: data[:16] + struct.pack("<Q", 2**40) + data[24:], "names 1099511627776 entries of metadata"),
        (lambda data: data[:8] + struct.pack("<Q", 2**40) + data[16:], "names 1099511627776 tensors"),
        (lambda data: data[:24] + struct.pack("<Q", 2**40) + data[32:], "values in a file of"),
        (lambda data: data[:40], "the file ends inside its header"),
        (lambda data: data[:-32], "it is truncated"),
        (lambda data: data.replace(b"general.architecture", b"general.\xffrchitecture", 1), "header is damaged"),
        (
            lambda data: data.replace(b"mpt.block_count", b"mpt.alock_count", 1),
            "is known to have mpt.alock_count",
        ),
        (lambda data: data.replace(b"blk.1.attn_norm", b"blk.0.attn_norm"), "names the tensor 'blk.0.attn_norm"),
        (lambda data: data.replace(b"mpt.block_count", b"mpt.embed_count"), "no MPT model is known to have mpt.embed"),
        (lambda data: data.replace(b"\x03\0\0\0\0\0\0\0mpt", b"\x03\0\0\0\0\0\0\0mqt", 1), "'mqt'; this package runs"),
        (lambda data: data.replace(b"token_embd", b"token_empt"), "no matrix 'token_embd.weight'"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "Git LFS pointer"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    rewrite(path, change)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        find_tensors(path) and MptConfig.from_file(path)


def test_a_size_that_is_missing_is_named(path: Path) -> None:
    rewrite(path, lambda data: data.replace(b"mpt.block_count", b"mqt.block_count", 1))
    with pytest.raises(ConfigError, match=r"mpt\.block_count is None; it must be an integer of at least 1"):
        MptConfig.from_file(path)


def test_types_without_weights_are_refused(path: Path) -> None:
    """Q8_K, in which llama.cpp keeps what it computes."""
    writer = GGUFWriter(path, "mpt")
    writer.add_tensor("token_embd.weight", np.zeros((1, 292), np.uint8), raw_dtype=GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"'token_embd\.weight' has the type Q8_K, which gguf-py does not"):
        read_gguf(path)


def test_names_that_no_mpt_has_are_kept_for_the_message(path: Path) -> None:
    assert family_name("blk.0.ffn_act.scales") == "blk.0.ffn_act.scales"
    rewrite(path, lambda data: data.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_ub.weight"))
    with pytest.raises(ConfigError, match=r"blk\.0\.ffn_up\.weight"):
        MptConfig.from_file(path)


def test_every_cut_of_a_header_is_an_error(path: Path) -> None:
    data = path.read_bytes()
    for end in range(0, 1500, 7):
        path.write_bytes(data[:end])
        with pytest.raises(GgufError):
            read_header(path)
