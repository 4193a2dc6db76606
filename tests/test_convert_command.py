"""`mpt-serve convert`: a checkpoint with its tokenizer and chat template, there and back."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_checkpoint import VOCAB
from tokenizers import Tokenizer

from model.checkpoint import convert as checkpoint_convert
from model.checkpoint import load_progress
from model.checkpoint.convert import Checkpoint
from model.checkpoint.folder import find_weights
from model.config.mpt_config import MptConfig
from model.params.weights import weight_specs
from mpt_serve.cli import main
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.conversion import compare_logits
from mpt_serve.conversion import convert as conversion
from mpt_serve.conversion.convert import convert
from mpt_serve.text.chat_template import ChatTemplate, Message
from mpt_serve.text.tokenizer import TextTokenizer

GOLDEN = Path(__file__).parent / "golden"
CONFIG: dict[str, Any] = {
    "model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": VOCAB, "max_seq_len": 32,
    "no_bias": True, "attn_config": {"alibi": True}, "eos_token_id": 256,
}  # fmt: skip
TEXT = "Hello  naïve <|endoftext|> 日本\n\n   x"


@pytest.fixture
def source(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copy(tiny_checkpoint / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    rng = np.random.default_rng(0)
    arrays = {s.name: rng.normal(0, 0.1, s.shape).astype(np.float16) for s in weight_specs(MptConfig.from_dict(CONFIG))}
    save_file(arrays, folder / "model.safetensors")
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small model without a tokenizer."""
    shutil.copytree(GOLDEN / "mpt-7b", tmp_path / "source")
    return tmp_path / "source"


def same_text(folder: Path, original: Path) -> None:
    ours, theirs = TextTokenizer.from_folder(folder), TextTokenizer.from_folder(original)
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.eos_token_ids == theirs.eos_token_ids
    assert ours.vocab_len == theirs.vocab_len
    message = Message(role="user", content="Hi")
    assert ChatTemplate.from_folder(folder).render([message]) == ChatTemplate.from_folder(original).render([message])


def test_text_goes_along(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(tmp_path / "hf"), "--to", "transformers"]) == 0
    same_text(tmp_path / "hf", source)
    assert main(["convert", str(source), str(tmp_path / "m.gguf")]) == 0
    same_text(tmp_path / "m.gguf", source)
    assert main(["convert", str(tmp_path / "m.gguf"), str(tmp_path / "back")]) == 0
    same_text(tmp_path / "back", source)
    assert MptConfig.from_file(tmp_path / "back").torch_dtype == "float16"
    out = capsys.readouterr().out
    assert f"wrote {tmp_path / 'back'}; logits: equal in every bit, the same most likely token at 100.0%" in out


def test_text_may_be_left_out(source: Path, tmp_path: Path) -> None:
    convert(str(source), str(tmp_path / "m.gguf"), None, "q8_0", tokenizer=False)
    done = convert(str(tmp_path / "m.gguf"), str(tmp_path / "out"), None, None, tokenizer=False)
    assert TextTokenizer.find(done.path) is None


@pytest.mark.parametrize(
    ("form", "kind", "message"),
    [
        (None, "q8_0", "--type: is 'q8_0'; llm-foundry has bfloat16, float16, float32"),
        ("gguf", "bfloat16", "gguf has f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0$"),
        ("gguf", "Q4_K_M", "is 'Q4_K_M'.*cannot write them well: convert to f16.*llama-quantize"),
    ],
)
def test_types_are_those_of_the_form(source: Path, tmp_path: Path, form: str | None, kind: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        convert(str(source), str(tmp_path / "out"), form, kind)


def test_what_cannot_be_read_ends_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_tokenizers_that_the_format_has_no_name_for_are_refused(source: Path, tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    library = Tokenizer.from_file(str(source / "tokenizer.json"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(source / "tokenizer.json"))
    with pytest.raises(ConfigurationError, match=r"only byte-level tokenizers .*--no-tokenizer"):
        convert(str(source), str(tmp_path / "m.gguf"), None, None)
    assert not (tmp_path / "m.gguf").exists()
    assert list(tmp_path.iterdir()) == [source]


def test_a_target_that_holds_a_checkpoint_is_kept(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    convert(str(small), str(target), None, None)
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(ConfigurationError, match=r"already holds a checkpoint; .*--overwrite"):
        convert(str(small), str(target), None, "float32")
    assert (target / "model.safetensors").read_bytes() == before
    convert(str(small), str(target), None, "float32", overwrite=True)
    assert MptConfig.from_file(target).torch_dtype == "float32"
    monkeypatch.chdir(target)
    convert(str(small), ".", None, "float16", overwrite=True)
    assert MptConfig.from_file(target).torch_dtype == "float16"
    with pytest.raises(ConfigurationError, match="is where the source is"):
        convert(str(small), str(small), None, None, overwrite=True)


def test_a_replaced_checkpoint_is_never_preferred(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file, then shards, then a tree: what is read is what was written last."""
    target = tmp_path / "out"
    convert(str(small), str(target), None, None)
    monkeypatch.setattr(checkpoint_convert, "_MAX_SHARD_BYTES", 50_000)
    convert(str(small), str(target), None, "float32", overwrite=True)
    assert find_weights(target) == target / "model.safetensors.index.json"
    convert(str(small), str(target), "orbax", "float16", overwrite=True)
    assert find_weights(target) == target / "orbax"
    (target / "pytorch_model.bin").write_bytes(b"mine")
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin, which is read instead of an Orbax tree"):
        convert(str(small), str(target), "orbax", None, overwrite=True)
    convert(str(small), str(target), None, None, overwrite=True)
    assert find_weights(target) == target / "model.safetensors.index.json"
    assert (target / "pytorch_model.bin").read_bytes() == b"mine"


def test_where_there_is_no_terminal_lines_say_how_it_goes_on(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load_progress, "_PERIOD_S", 0)
    assert main(["convert", str(small), str(tmp_path / "m.gguf")]) == 0
    lines = capsys.readouterr().err.splitlines()
    for title in ("Writing weights", "Comparing weights", "Comparing logits"):
        assert f"{title}: 0 of 1 MiB" in lines


def test_an_interrupted_conversion_goes_on(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "m.gguf"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "compare_logits", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(str(small), str(target), None, "q8_0")
    (partial,) = (path for path in tmp_path.iterdir() if path.name.endswith(".partial"))
    assert not target.exists()
    file = partial / "m.gguf"
    complete, inode = file.read_bytes(), file.stat().st_ino
    os.truncate(file, len(complete) * 2 // 3)
    convert(str(small), str(target), None, "q8_0")
    assert (target.read_bytes(), target.stat().st_ino) == (complete, inode)
    assert sorted(tmp_path.iterdir()) == sorted([small, target])


def test_results_whose_logits_differ_are_removed(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"diverge from .* more than 1e-09; choose a type with more bits"):
        convert(str(small), str(tmp_path / "m.gguf"), None, "q4_0", max_divergence=1e-9)
    real, calls = compare_logits._head, []

    def different(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments) * len(calls)

    monkeypatch.setattr(compare_logits, "_head", different)
    with pytest.raises(ConfigurationError, match="its type holds every number of the source, but its logits differ"):
        convert(str(small), str(tmp_path / "out"), None, "float32")
    assert list(tmp_path.iterdir()) == [small]


@pytest.mark.parametrize("name", ["many-switches-rope", "learned-positions-full"])
def test_logits_are_those_of_llm_foundry(name: str) -> None:
    """Block by block, as of all weights at once."""
    golden = np.load(GOLDEN / name / "golden.npz")
    found = compare_logits._logits(Checkpoint.open(GOLDEN / name), golden["ids"].astype(np.int32)[None], False)
    assert np.abs(found[0] - golden["logits"]).max() < 2e-4


def test_an_adapter_is_rounded_to_the_type_of_its_base(small: Path, tmp_path: Path) -> None:
    adapter, rng = tmp_path / "adapter", np.random.default_rng(0)
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": str(small)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.transformer.blocks.0.ffn.down_proj"
    matrices = {"lora_A": rng.normal(0, 0.1, (2, 256)), "lora_B": rng.normal(0, 0.1, (64, 2))}
    save_file(
        {f"{name}.{kind}.weight": array.astype(np.float32) for kind, array in matrices.items()},
        adapter / "adapter_model.safetensors",
    )
    done = convert(str(adapter), str(tmp_path / "merged"), None, None)
    assert not done.comparison.same
    assert MptConfig.from_file(done.path).torch_dtype == "bfloat16"
    assert convert(str(adapter), str(tmp_path / "wide"), None, "float32").comparison.same
    assert convert(str(tmp_path / "wide"), str(tmp_path / "tree"), "orbax", None).comparison.same
