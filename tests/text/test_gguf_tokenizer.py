"""Tokenizers and templates inside GGUF files: ids and texts are those of what the file was made from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer

from mpt_serve.text.chat_template import ChatTemplate, Message, MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError
from mpt_serve.text.tokenizer_folder import has_tokenizer

NEOX = Path(__file__).parent / "data" / "gpt-neox-20b" / "tokenizer.json"
TEXTS = st.text(max_size=60) | st.text("an be\u0301\t\n é<|>1'll  ", max_size=60)


def write(path: Path, fill: Callable[[GGUFWriter], Any]) -> Path:
    writer = GGUFWriter(path, "mpt")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def neox_vocabulary(writer: GGUFWriter, old: bool = False, pre: str | None = "mpt") -> None:
    """As llama.cpp's converter writes it, padded to the model's embedding. old: as that of 2023, without types."""
    import json

    library = Tokenizer.from_file(str(NEOX))
    names = {token_id: token for token, token_id in library.get_vocab().items()}
    added = library.get_added_tokens_decoder()
    tokens, types = [], []
    for i in range(50288):
        tokens.append(names.get(i, f"[PAD{i}]"))
        kind = TokenType.NORMAL if i in names else TokenType.UNUSED
        if i in added and not old:
            kind = TokenType.CONTROL if added[i].special else TokenType.USER_DEFINED
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in json.loads(library.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)


@pytest.mark.parametrize("old", [False, True])
def test_gpt_neox_is_itself(tmp_path: Path, neox: TextTokenizer, old: bool) -> None:
    path = write(tmp_path / "m.gguf", lambda writer: neox_vocabulary(writer, old, None if old else "mpt"))
    ours = TextTokenizer.from_folder(path)

    @given(TEXTS)
    def check(text: str) -> None:
        assert ours.encode(text) == neox.encode(text)
        assert ours.decode(ours.encode(text)) == neox.decode(neox.encode(text))

    check()
    text = "a<|endoftext|>b" + " " * 30
    assert ours.encode(text) == neox.encode(text)
    assert ours.vocab_len == neox.vocab_len
    assert ours.eos_token_ids == (0,)
    assert ours.special_tokens == {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|padding|>",
    }
    assert 0 in ours.special_ids


def small(
    writer: GGUFWriter, tokens: list[Any], types: list[int] | None = None, kind: str = "gpt2", **values: Any
) -> None:
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    if types is not None:
        writer.add_token_types(types)
    for name, value in values.items():
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, str):
            writer.add_string(f"tokenizer.ggml.{name}", value)
        else:
            writer.add_uint32(f"tokenizer.ggml.{name}", value)


def test_texts_may_begin_and_end_with_tokens(tmp_path: Path) -> None:
    ends = {"bos_token_id": 3, "eos_token_id": 4, "add_bos_token": True, "add_eos_token": True, "eot_token_id": 5}
    tokens = ["a", "b", "ab", "<s>", "</s>", "<|eot|>", "<|im_end|>"]
    types = [1, 1, 1, 3, 3, 3, 4]
    path = write(tmp_path / "m.gguf", lambda w: small(w, tokens, types, merges=["a b"], pre="gpt-2", **ends))
    tokenizer = TextTokenizer.from_folder(path)
    assert tokenizer.encode("ab<|im_end|>") == [3, 2, 6, 4]
    assert tokenizer.encode("ab", add_special_tokens=False) == [2]
    assert tokenizer.eos_token_ids == (4, 5, 6)


def test_cls_and_separators_have_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", lambda w: small(w, ["a", "b"], merges=[], separator_token_id=1, cls_token_id=9))
    assert TextTokenizer.from_folder(path).special_tokens == {"sep_token": "b"}


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda w: None, "has no tokenizer"),
        (lambda w: small(w, ["a"], kind="rwkv"), "of the kind 'rwkv'; gpt2 and llama are read"),
        (lambda w: small(w, ["a"], pre="qwen2"), "splits texts into words as 'qwen2' does"),
        (lambda w: small(w, ["a", "a"]), "names a token twice"),
        (lambda w: small(w, ["a"], [1, 1]), "another number of token types"),
        (lambda w: small(w, ["a"], merges=["abc"]), "a merge that does not name two tokens"),
        (lambda w: small(w, ["a"], merges=[1]), r"tokenizer\.ggml\.merges that is no list of str"),
        (lambda w: small(w, ["a"], kind="llama", scores=[1.0, 2.0]), "another number of scores"),
        (lambda w: small(w, ["a"], kind="llama"), "that the library refuses"),
    ],
)
def test_what_cannot_be_read_exactly_is_named(tmp_path: Path, fill: Callable[[GGUFWriter], Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        TextTokenizer.from_folder(write(tmp_path / "m.gguf", fill))


def test_a_damaged_file_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    for read in (has_tokenizer, TextTokenizer.from_folder):
        with pytest.raises(TokenizerError, match="ends inside its header"):
            read(path)


def test_a_file_may_have_no_tokenizer(tmp_path: Path) -> None:
    assert TextTokenizer.find(write(tmp_path / "m.gguf", lambda writer: None)) is None


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_models_are_themselves(tmp_path: Path, kind: str, prefix: bool) -> None:
    corpus = ["Xin chào các bạn, tôi là người Việt", "banana bandana aaaa", "def f(x): return x", "１２ ﬁne"] * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=str(tmp_path / "m"), vocab_size=340, hard_vocab_limit=False,
        model_type=kind, byte_fallback=True, add_dummy_prefix=prefix, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    theirs = SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    ids = range(theirs.vocab_size())
    types = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in ids]
    pieces, scores = [theirs.id_to_piece(i) for i in ids], [theirs.get_score(i) for i in ids]
    values = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": prefix, "scores": scores}
    path = write(tmp_path / "m.gguf", lambda w: small(w, pieces, types, "llama" if kind == "bpe" else "t5", **values))
    ours = TextTokenizer.from_folder(path)

    @given(TEXTS)
    def check(text: str) -> None:
        ids = ours.encode(text, parse_special_tokens=False)
        assert ids == [1, *theirs.encode(text)][: len(ids)] or ids == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False, parse_special_tokens=False) == theirs.encode(text)

    check()
    assert ours.encode("a</s>") == [1, *theirs.encode("a"), 2]
    assert ours.decode(ours.encode("bạn x", add_special_tokens=False)) == "bạn x"


def test_the_template_is_the_files(tmp_path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        small(writer, ["a", "b"], merges=[], eos_token_id=1)
        writer.add_chat_template("{{ messages[0].content }}{{ eos_token }}")

    path = write(tmp_path / "m.gguf", fill)
    assert ChatTemplate.from_folder(path).render([Message(role="user", content="Hi")]) == "Hib"
    without = write(tmp_path / "n.gguf", lambda w: small(w, ["a"], merges=[]))
    with pytest.raises(MissingChatTemplateError, match="no chat template"):
        ChatTemplate.from_folder(without)
