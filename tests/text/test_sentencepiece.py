"""Checkpoints with a SentencePiece model instead of a tokenizer.json: the ids are those of the library itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from mpt_serve.text.encode_process import EncodeProcess
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError

CORPUS = [
    "def f(x):\n\treturn x + 1  # two  spaces and a\ttab",
    "Xin chào các bạn, tôi là một người Việt Nam. Phở bò ngon lắm.",
    "Selamat pagi, apa kabar? The quick brown fox jumps over the lazy dog; naïve café.",
    "banana bandana ananas aaaa aaaaa abababab １２３ ﬁne ｶﾞ が",
    "for i in range(10): print(i, end='') if i % 2 else None",
] * 20
MODELS: dict[str, dict[str, Any]] = {
    "BPE": {"model_type": "bpe", "byte_fallback": True},
    "unigram": {"model_type": "unigram", "byte_fallback": True},
    "without bytes": {"model_type": "unigram", "character_coverage": 0.98},
    "spaces are kept": {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False,
                        "normalization_rule_name": "identity"},
    "no space before": {"model_type": "unigram", "add_dummy_prefix": False, "normalization_rule_name": "nfkc"},
    "symbols in the model": {"model_type": "bpe", "byte_fallback": True, "user_defined_symbols": ["<|im_end|>", "\n"]},
}  # fmt: skip
ENDS = {"unk_piece": "<|unk|>", "eos_piece": "<|endoftext|>", "pad_piece": "<|pad|>"}
IDS = {"unk_id": 0, "eos_id": 1, "pad_id": 2, "bos_id": -1}
TEXTS = st.text(max_size=60) | st.text("an bＡﾞか\t\n é<|>1", max_size=60)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    trained: dict[str, bytes] = {}

    def make(model: str, config: dict[str, Any], file: str = "tokenizer.model") -> Path:
        if model not in trained:
            prefix = tmp_path_factory.mktemp("model") / "m"
            SentencePieceTrainer.train(
                sentence_iterator=iter(CORPUS), model_prefix=str(prefix), vocab_size=400, hard_vocab_limit=False,
                minloglevel=2, **(ENDS | IDS), **MODELS[model],
            )  # fmt: skip
            trained[model] = prefix.with_suffix(".model").read_bytes()
        folder = tmp_path_factory.mktemp("folder")
        (folder / file).write_bytes(trained[model])
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text(json.dumps({"model_type": "mpt"}))
        return folder

    return make


REPLIT = {
    "tokenizer_class": "ReplitLMTokenizer",
    "auto_map": {"AutoTokenizer": ["replit_lm_tokenizer.ReplitLMTokenizer", None]},
}
SEA = {"tokenizer_class": "SEABPETokenizer", "add_bos_token": False, "legacy": True, "eos_token": "<|endoftext|>",
       "auto_map": {"AutoTokenizer": ["tokenization_SEA_BPE.SEABPETokenizer", None]}}  # fmt: skip


def library(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(next(folder.glob("*.model"))))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("config", "file"), [(SEA, "tokenizer.model"), (REPLIT, "spiece.model"), ({}, "spiece.model")])
def test_ids_and_text_are_the_librarys(
    folder_of: Callable[..., Path], model: str, config: dict[str, Any], file: str
) -> None:
    folder = folder_of(model, config, file)
    ours, theirs = TextTokenizer.from_folder(folder), library(folder)

    @given(TEXTS)
    def check(text: str) -> None:
        ids = ours.encode(text, parse_special_tokens=False)
        assert ids == theirs.encode(text)
        assert ours.encode(text) == ids
        if theirs.unk_id() not in ids and text.strip():  # the library has another text for what is unknown
            assert ours.decode(ids) == theirs.decode(ids)

    check()
    assert ours.vocab_len == theirs.vocab_size()
    assert ours.eos_token_ids[0] == theirs.eos_id() == 1
    assert ours.special_tokens["unk_token"] in (theirs.id_to_piece(0), "<unk>")


def test_a_text_is_cut_at_its_special_tokens(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("BPE", {**SEA, "additional_special_tokens": ["<|user|>"]})
    ours, theirs = TextTokenizer.from_folder(folder), library(folder)
    user = theirs.vocab_size()  # the library does not have it
    text = "<|user|>Xin chào<|endoftext|> f(x)"
    assert ours.encode(text) == [user, *theirs.encode("Xin chào"), 1, *theirs.encode(" f(x)")]
    assert ours.encode(text, parse_special_tokens=False) == theirs.encode(text)
    assert ours.token_id("<|user|>") == user in ours.special_ids


def test_spaces_beside_a_token_belong_to_it_if_it_says_so(folder_of: Callable[..., Path]) -> None:
    tokens = {
        "400": {"content": "<|l|>", "lstrip": True},
        "401": {"content": "<|r|>", "rstrip": True},
        "402": {"content": "word", "single_word": True},
    }
    folder = folder_of("spaces are kept", SEA)
    size = library(folder).vocab_size()
    decoder = {str(size + i): token for i, token in enumerate(tokens.values())}
    (folder / "tokenizer_config.json").write_text(json.dumps({**SEA, "added_tokens_decoder": decoder}))
    ours, encode = TextTokenizer.from_folder(folder), library(folder).encode
    assert ours.encode("a  <|l|>  b  <|r|>  c") == [*encode("a"), size, *encode("  b  "), size + 1, *encode("c")]
    assert ours.encode("words word") == [*encode("words "), size + 2]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("add", [{}, {"add_bos_token": True, "add_eos_token": True}])
def test_llama_like_tokenizers_are_read_as_by_transformers(
    folder_of: Callable[..., Path], legacy: bool, add: dict[str, bool]
) -> None:
    from transformers import AutoTokenizer

    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "bos_token": "<|pad|>", **add}
    folder = folder_of("spaces are kept", {**config, "eos_token": "<|endoftext|>", "unk_token": "<|unk|>"})
    ours, theirs = TextTokenizer.from_folder(folder), AutoTokenizer.from_pretrained(str(folder))
    assert ours.special_tokens == theirs.special_tokens_map
    for text in (*CORPUS[:3], "Hi<|endoftext|>there", "<|pad|>Hi", "", "日本"):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"])


def test_a_llama_like_tokenizer_may_have_no_space_before(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("spaces are kept", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False})
    assert TextTokenizer.from_folder(folder).encode("a")[0] == library(folder).piece_to_id("a")


def test_control_tokens_in_text_are_text(folder_of: Callable[..., Path]) -> None:
    """Also those that the model itself looks for."""
    folder = folder_of("symbols in the model", {**SEA, "additional_special_tokens": ["<|im_end|>"]})
    ours, theirs = TextTokenizer.from_folder(folder), library(folder)
    end = theirs.piece_to_id("<|im_end|>")
    assert theirs.encode("a<|im_end|>")[-1] == end == ours.encode("a<|im_end|>")[-1]
    spelled = ours.encode("a<|im_end|>b\n", parse_special_tokens=False)
    assert end not in spelled
    assert theirs.piece_to_id("\n") in spelled  # no control token
    assert ours.decode(spelled) == "a<|im_end|>b\n"


def test_long_texts_are_encoded_in_another_process(folder_of: Callable[..., Path]) -> None:
    config = {**SEA, "legacy": False, "add_bos_token": True, "bos_token": "<|pad|>"}
    tokenizer = TextTokenizer.from_folder(folder_of("BPE", config))
    process = EncodeProcess(tokenizer, 0)
    text = "Xin chào<|endoftext|>bạn"
    assert list(process.encode(text)) == tokenizer.encode(text)
    assert tokenizer.encode(text)[0] == 2
    process.close()
    assert TextTokenizer.from_serialized(tokenizer.serialized).encode(text) == tokenizer.encode(text)


def test_a_file_that_is_no_model_is_named(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("BPE", SEA)
    file = folder / "tokenizer.model"
    for content, message in {
        b"IQ== 0\nIg== 1\n": "a vocabulary of tiktoken, not a SentencePiece model",
        b"\x00" * 50: "not a SentencePiece model, or a damaged one",
        b"version https://git-lfs.github.com/spec/v1\nsize x\n": "Git LFS pointer",
    }.items():
        file.write_bytes(content)
        with pytest.raises(TokenizerError, match=message):
            TextTokenizer.from_folder(folder)


def test_a_class_may_have_reasons_to_refuse(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("BPE", {"tokenizer_class": "CodeLlamaTokenizer"})
    (folder / "config.json").write_text("[]")
    with pytest.raises(TokenizerError, match=r"transformers cannot make one .*the vocabulary of tokenizer\.model"):
        TextTokenizer.from_folder(folder)
    (folder / "config.json").write_text("{}")
    (folder / "vocab.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(TokenizerError, match="Git LFS pointer"):
        TextTokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SEA, "tokenizer_class": "OtherTokenizer"}, r"class \(OtherTokenizer\) is Python code .*never run"),
        ({"tokenizer_class": "CodeLlamaTokenizer"}, "cuts texts differently"),
        ({"tokenizer_class": "GPTNeoXTokenizer"}, r"the class .* \(GPTNeoXTokenizer\) cuts texts differently"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_with_the_cause(
    folder_of: Callable[..., Path], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message) as refusal:
        TextTokenizer.from_folder(folder_of("BPE", config))
    assert "gpt-neox-20b" not in str(refusal.value)  # which has another vocabulary
