"""Special tokens wherever a folder states them: what transformers reads in the same folder is right."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from toy_tokenizers import byte_level_tokenizer

from mpt_serve.text.chat_template import ChatTemplate, Message
from mpt_serve.text.class_defaults import class_defaults
from mpt_serve.text.special_tokens import read_special_tokens
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError
from mpt_serve.text.tokenizer_files import tokenizer_class

MPT = {"model_type": "mpt", "vocab_size": 300}
EOT, END = "<|endoftext|>", "<|im_end|>"


def added(text: str, **properties: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False} | properties  # fmt: skip


FOLDERS: dict[str, dict[str, Any]] = {
    "in the map alone": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map": {"bos_token": EOT, "eos_token": EOT},
    },
    "by the class": {"tokenizer_config": {"tokenizer_class": "GPTNeoXTokenizerFast"}},
    "by the model": {},
    "by GPT-2's class": {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}},
    "a class without defaults": {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}},
    "the class in config.json": {"config": {**MPT, "tokenizer_class": "GPT2TokenizerFast"}},
    "a class of another kind": {"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer", "pad_token": None}},
    "the map over the config": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "a", "pad_token": "b"},
        "special_tokens_map": {"eos_token": {"content": EOT, "lstrip": False, "rstrip": False, "normalized": False,
                                             "single_word": False}},
    },
    "null takes a default away": {"tokenizer_config": {"tokenizer_class": "GPTNeoXTokenizer", "bos_token": None}},
    "an end that only the config names": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    },
    "objects": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": added(END, lstrip=True)}
    },
    "added_tokens.json": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END},
        "added_tokens": {"<|im_start|>": 258, END: 259},
    },
    "added_tokens_decoder": {
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "added_tokens_decoder": {
                "258": {"content": "<|x|>", "rstrip": True, "normalized": False, "special": False},
                "259": {"content": END, "normalized": False, "special": True},
            },
        },
        "special_tokens_map": {"eos_token": EOT, "pad_token": "z"},
        "added_tokens": {"<|nobody|>": 300},
    },
    "additional_special_tokens": {
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": ["<|im_start|>", END],
        },
    },
    "extra tokens in the map": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": ["<|a|>"]},
        "special_tokens_map": {"extra_special_tokens": ["<|a|>", "<|b|>"], "cls_token": "<|c|>"},
    },
    "additional tokens in the map": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map": {"additional_special_tokens": ["<|b|>"]},
    },
    "tokens with other names": {
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "image_token": "<|image|>",
            "extra_special_tokens": {"boi_token": "<|boi|>"},
        },
    },
    "extra tokens in both": {
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|a|>"]},
        "special_tokens_map": {"additional_special_tokens": ["<|b|>"]},
    },
    "no tokenizer_config.json": {"tokenizer_config": None, "special_tokens_map": {"eos_token": EOT, "sep_token": "s"}},
}  # fmt: skip
TEXT = f"a <|im_start|>b{END} c{EOT} <|x|>  d<|a|><|b|><|image|>"


def write(folder: Path, files: dict[str, Any]) -> Path:
    library = byte_level_tokenizer()
    library.save(str(folder / "tokenizer.json"))
    for name, content in ({"config": MPT, "tokenizer_config": {}} | files).items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_has_the_special_tokens_that_transformers_reads(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = write(tmp_path, FOLDERS[name])
    theirs = AutoTokenizer.from_pretrained(str(folder))
    ours = TextTokenizer.from_folder(folder)
    assert ours.special_tokens == theirs.special_tokens_map
    assert list(ours.special_tokens) == list(theirs.special_tokens_map)
    if theirs.eos_token is not None:
        assert theirs.eos_token_id in ours.eos_token_ids
    text = TEXT.replace("<|padding|>", "")
    assert ours.encode(text) == theirs(text)["input_ids"]
    ids = ours.encode(text)
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


FAST = ["PreTrainedTokenizerFast", "BloomTokenizerFast"]
CLASSES = ["TokenizersBackend", "GPTNeoXTokenizer", "GPT2Tokenizer", "LlamaTokenizer", "CodeLlamaTokenizer"]


@pytest.mark.parametrize("name", FAST + CLASSES)
def test_the_defaults_are_those_of_the_class(name: str) -> None:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found = tokenizer_class_from_name(name)
    assert found is not None
    tokens = {p.name: p.default for p in inspect.signature(found.__init__).parameters.values()}
    expected = {key: text for key, text in tokens.items() if key.endswith("_token") and isinstance(text, str)}
    assert class_defaults(name.removesuffix("Fast")) == expected


def test_nobody_knows_the_defaults_of_an_unheard_of_class() -> None:
    assert class_defaults("UnheardOfTokenizer") == {} == class_defaults(None)


def test_a_default_that_the_vocabulary_lacks_is_no_token(tmp_path: Path) -> None:
    """It would be one that the model has no embedding of; transformers adds it."""
    ours = TextTokenizer.from_folder(write(tmp_path, {"tokenizer_config": {"tokenizer_class": "GPTNeoXTokenizer"}}))
    assert ours.token_id("<|padding|>") is None
    assert ours.special_tokens["pad_token"] == "<|padding|>"


def test_the_file_may_name_the_padding(tmp_path: Path) -> None:
    folder = write(tmp_path, {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}})
    library = byte_level_tokenizer()
    library.enable_padding(pad_id=65, pad_token="a")
    library.save(str(folder / "tokenizer.json"))
    assert TextTokenizer.from_folder(folder).special_tokens == {"pad_token": "a"}


def test_an_added_token_keeps_what_the_file_says_about_it(tmp_path: Path) -> None:
    folder = write(tmp_path, FOLDERS["objects"])
    library = byte_level_tokenizer()
    library.add_tokens([AddedToken(END, rstrip=True)])
    library.save(str(folder / "tokenizer.json"))
    assert TextTokenizer.from_folder(folder).encode(f"a {END} b") == [64, 220, 258, 65]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<|x|>": 300}}, r"the added token '<\|x\|>' the id 300, but its place .* is 258"),
        ({"added_tokens": {"<|x|>": "1"}}, r"gives '<\|x\|>' the id 1, not an integer"),
        ({"added_tokens": {"<|x|>": True}}, "not an integer"),
        ({"added_tokens": []}, r"added_tokens\.json must hold a JSON object, not a list"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "added_tokens_decoder .* not a list"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "has 'x'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": "a"}}}, "has '1': a"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": {}}}}, "has '1': {}"),
    ],
)
def test_files_that_contradict_themselves_are_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        TextTokenizer.from_folder(write(tmp_path, files))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "config.json"])
def test_pointers_of_git_lfs_are_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, {})
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2113710\n")
    with pytest.raises(TokenizerError, match=rf"{name} is a Git LFS pointer.*2,113,710 bytes.*git lfs pull"):
        TextTokenizer.from_folder(folder)


def test_tokens_that_are_no_texts_count_for_nothing(tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": 5, "extra_special_tokens": [7, EOT]}
    folder = write(tmp_path, {"tokenizer_config": config})
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [7, {"id": "x"}, {"id": 3}], "padding": 1}))
    assert read_special_tokens(folder).named == {}


def test_a_folder_without_a_model_type_has_no_class(tmp_path: Path) -> None:
    assert tokenizer_class(tmp_path) is None
    assert tokenizer_class(write(tmp_path, {"config": {"model_type": "mosaic_gpt"}})) == "GPTNeoXTokenizer"


def test_an_adapter_has_its_own_tokenizer_or_that_of_its_base(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    write(base, {"tokenizer_config": {"tokenizer_class": "GPTNeoXTokenizer", "chat_template": "base"}})
    file = adapter / "adapter_config.json"
    file.write_text("{")
    with pytest.raises(TokenizerError, match="is not JSON"):
        TextTokenizer.from_folder(adapter)
    file.write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "base"}))
    found = TextTokenizer.find(adapter)
    assert found is not None
    assert found.eos_token_ids == (256,)
    assert ChatTemplate.from_folder(adapter).source == "base"
    byte_level_tokenizer().save(str(adapter / "tokenizer.json"))
    assert TextTokenizer.from_folder(adapter).eos_token_ids == ()


def test_templates_see_every_special_token(tmp_path: Path) -> None:
    source = "{% for t in [bos_token, pad_token, unk_token, sep_token, image_token] %}{{ t }},{% endfor %}"
    config = {"tokenizer_class": "GPTNeoXTokenizer", "sep_token": "s", "image_token": "i"}
    folder = write(tmp_path, {"tokenizer_config": config})
    template = ChatTemplate.from_folder(folder, source + "{{ tools is none and documents is none }}")
    assert template.render([Message(role="user", content="Hi")]) == f"{EOT},<|padding|>,{EOT},s,i,True"
