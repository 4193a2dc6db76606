"""FasterTransformer's folders, written here as llm-foundry's converter writes them."""

from pathlib import Path

import numpy as np
import pytest
from ft_writer import BIASED, write_fastertransformer

from model.checkpoint.folder import find_tensors
from model.checkpoint.load import load_weights
from model.checkpoint.stored_tensor import CheckpointError
from model.config.dialects import family_config
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError
from model.params.weights import leaf_paths, weight_specs
from model.pretrained import resolve_checkpoint


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_numbers_are_those_that_were_converted(tmp_path: Path, devices: int, kind: str) -> None:
    arrays = write_fastertransformer(tmp_path, devices, kind)
    assert resolve_checkpoint(tmp_path) == tmp_path
    config = MptConfig.from_file(tmp_path)
    dtype = {"fp32": "float32", "fp16": "float16"}[kind]
    assert config == MptConfig.from_dict({**BIASED, "eos_token_id": 0, "torch_dtype": dtype})
    assert MptConfig.from_dict(family_config(tmp_path)) == config
    weights = leaf_paths(load_weights(tmp_path, config))
    for spec in weight_specs(config):
        assert weights[spec.path].dtype == dtype
        assert np.array_equal(weights[spec.path], arrays[spec.name]), spec.name


def test_positions_and_a_head_are_read_where_they_are(tmp_path: Path) -> None:
    write_fastertransformer(tmp_path, use_attention_linear_bias="False")
    rng = np.random.default_rng(0)
    rng.normal(size=(32, 16)).astype(np.float32).tofile(tmp_path / "model.wpe.bin")
    rng.normal(size=(40, 16)).astype(np.float32).tofile(tmp_path / "model.lm_head.weight.bin")
    config = MptConfig.from_file(tmp_path)
    assert (config.learned_positions, config.alibi, config.tied_head) == (True, False, False)
    load_weights(tmp_path, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_num": "four"}, "head_num is 'four'; it must be an integer"),
        ({"num_layer": "0"}, "num_layer is '0'; it must be an integer"),
        ({"weight_data_type": "int8"}, "weight_data_type is 'int8'; fp32 and fp16 are read"),
        ({"layernorm_eps": "small"}, "layernorm_eps is 'small'; it must be a number"),
        ({"tensor_para_size": ""}, "tensor_para_size is ''; it must be an integer"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write_fastertransformer(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        MptConfig.from_file(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        find_tensors(tmp_path)


@pytest.mark.parametrize(("content", "message"), [(b"[other]\n", "no section"), (b"\xff", "no INI"), (b"x", "no INI")])
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_fastertransformer(tmp_path)
    (tmp_path / "config.ini").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        MptConfig.from_file(tmp_path)


def test_missing_and_truncated_files_are_named(tmp_path: Path) -> None:
    write_fastertransformer(tmp_path, 2)
    file = tmp_path / "model.layers.1.attention.query_key_value.weight.1.bin"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"weight\.1\.bin: has 1532 bytes; .* \[16, 3, 8\] has 1536"):
        find_tensors(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"query_key_value\.weight\.1\.bin is missing"):
        find_tensors(tmp_path)
    write_fastertransformer(tmp_path, 1, tensor_para_size="3")
    with pytest.raises(CheckpointError, match="tensor_para_size is 3, which does not divide 16 and 64 features"):
        find_tensors(tmp_path)
