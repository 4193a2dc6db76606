"""`mpt-serve convert`: a checkpoint with its tokenizer and chat template, there and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from model.config.mpt_config import MptConfig
from mpt_serve.cli import main
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.convert import convert
from mpt_serve.text.chat_template import ChatTemplate, Message
from mpt_serve.text.tokenizer import TextTokenizer

NEOX = Path(__file__).parent / "text" / "data" / "gpt-neox-20b"
CONFIG: dict[str, Any] = {
    "model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 50304, "max_seq_len": 32,
    "no_bias": True, "attn_config": {"alibi": True}, "eos_token_id": 0,
}  # fmt: skip
TEXT = "Hello  naïve <|endoftext|> 日本\n\n   x"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    import numpy as np

    from model.params.weights import weight_specs

    folder = tmp_path / "source"
    shutil.copytree(NEOX, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    rng = np.random.default_rng(0)
    arrays = {s.name: rng.normal(0, 0.1, s.shape).astype(np.float16) for s in weight_specs(MptConfig.from_dict(CONFIG))}
    save_file(arrays, folder / "model.safetensors")
    return folder


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
    assert f"wrote {tmp_path / 'back'}" in capsys.readouterr().out


def test_text_may_be_left_out(source: Path, tmp_path: Path) -> None:
    convert(str(source), str(tmp_path / "m.gguf"), None, "q8_0", tokenizer=False)
    assert TextTokenizer.find(convert(str(tmp_path / "m.gguf"), str(tmp_path / "out"), None, None, False)) is None


@pytest.mark.parametrize(
    ("form", "kind", "message"),
    [
        (None, "q8_0", "--type: is 'q8_0'; llm-foundry has bfloat16, float16, float32"),
        ("gguf", "bfloat16", "gguf has f32, f16, bf16, q8_0, q4_0"),
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
