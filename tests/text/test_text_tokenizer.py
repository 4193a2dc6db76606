import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from toy_tokenizers import TOY_TOKENIZERS, byte_fallback_tokenizer, byte_level_tokenizer, metaspace_tokenizer

from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError

MPT_VOCAB_SIZE = 50432  # the models' padded embedding, above the tokenizer's 50,277


def test_vocab_len_counts_added_tokens(neox: TextTokenizer) -> None:
    assert neox.vocab_len == 50277


@pytest.mark.parametrize(("token_id", "token"), [(0, "<|endoftext|>"), (253, "Ġthe"), (50276, " " * 2), (50400, "")])
def test_tokens_are_written_as_in_the_vocabulary(neox: TextTokenizer, token_id: int, token: str) -> None:
    assert neox.token(token_id) == token


def test_neox_text_is_the_librarys(neox: TextTokenizer, neox_library: Tokenizer) -> None:
    text = "def f(x):\n        return x  # naïve 日本 🎉<|endoftext|>"
    ids = neox_library.encode(text).ids
    assert neox.encode(text) == ids
    assert neox.decode(ids) == neox_library.decode(ids, skip_special_tokens=False) == text
    assert neox.decode(ids, skip_special_tokens=True) == text.removesuffix("<|endoftext|>")


@given(ids=st.lists(st.integers(0, 50276), max_size=20), skip=st.booleans())
def test_neox_decodes_any_ids_like_the_library(
    neox: TextTokenizer, neox_library: Tokenizer, ids: list[int], skip: bool
) -> None:
    assert neox.decode(ids, skip_special_tokens=skip) == neox_library.decode(ids, skip_special_tokens=skip)


@given(ids=st.lists(st.integers(0, 257), max_size=20))
def test_byte_level_decodes_any_ids_like_the_library(ids: list[int]) -> None:
    library = byte_level_tokenizer()
    assert TextTokenizer(byte_level_tokenizer()).decode(ids) == library.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("make", [metaspace_tokenizer, byte_fallback_tokenizer])
@given(words=st.lists(st.sampled_from(["a", "b", "ab", "é", "a.b", "ld"]), min_size=1, max_size=8))
def test_sentencepiece_text_comes_back(make: type, words: list[str]) -> None:
    text = " ".join(words) if make is byte_fallback_tokenizer else " ".join(words).replace(".", "")
    tokenizer = TextTokenizer(make())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == make().decode(ids) == text


def test_byte_fallback_spells_unknown_characters() -> None:
    tokenizer = TextTokenizer(byte_fallback_tokenizer())
    assert tokenizer.decode(tokenizer.encode("a 日b")) == "a 日b"


@pytest.mark.parametrize("make", TOY_TOKENIZERS.values(), ids=TOY_TOKENIZERS)
def test_decode_is_total(make: type) -> None:
    tokenizer = TextTokenizer(make())
    assert tokenizer.decode([tokenizer.vocab_len, 10**9, -1]) == ""


def test_padded_vocabulary_decodes_to_nothing(neox: TextTokenizer) -> None:
    assert neox.decode(range(neox.vocab_len, MPT_VOCAB_SIZE)) == ""


def test_without_decoder_tokens_are_words() -> None:
    library = Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    assert TextTokenizer(library).decode([0, 1, 1]) == library.decode([0, 1, 1]) == "one two two"


def test_unknown_decoder_is_refused() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="WordPiece"):
        TextTokenizer(tokenizer)


def test_truncation_and_padding_of_the_file_are_off() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=5)
    assert len(TextTokenizer(tokenizer).encode("abc")) == 3


@pytest.mark.parametrize("value", [0, [0, 5]])
def test_eos_may_be_zero(folder: Path, value: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert TextTokenizer.from_folder(folder).eos_token_ids[0] == 0


def test_eos_ids_come_from_every_file(folder: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    assert TextTokenizer.from_folder(folder).eos_token_ids == (1, 2, 3, 256, 258)


def test_eos_ids_that_do_not_exist_are_dropped(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [True, "2", 10**6, -1]}))
    assert TextTokenizer.from_folder(folder).eos_token_ids == ()


def test_folder_without_tokenizer_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"Put the tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)


def test_a_tokenizer_is_found_if_there_is_one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = TextTokenizer.find(folder)
    assert found is not None
    assert found.vocab_len == TextTokenizer.from_folder(folder).vocab_len
    assert TextTokenizer.find(tmp_path_factory.mktemp("empty")) is None


def test_broken_tokenizer_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{"])
def test_broken_config_file_is_named(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"generation_config\.json"):
        TextTokenizer.from_folder(folder)


@given(text=st.text(max_size=200))
def test_no_token_stands_for_more_characters_than_said(neox: TextTokenizer, text: str) -> None:
    assert neox.max_chars_per_token is not None
    assert len(text) <= neox.max_chars_per_token * len(neox.encode(text))


def test_no_bound_where_unknown_tokens_swallow_text() -> None:
    assert TextTokenizer(metaspace_tokenizer()).max_chars_per_token is None


def test_fused_tokens_are_their_own_text() -> None:
    library = Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    library.decoder = decoders.Fuse()
    assert TextTokenizer(library).decode([0, 1]) == library.decode([0, 1]) == "onetwo"


def test_older_folders_are_read_through_transformers(tmp_path: Path) -> None:
    """A folder with vocab.json and merges.txt, as byte-level tokenizers were saved before tokenizer.json."""
    byte_level_tokenizer().model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 0}))
    tokenizer = TextTokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode("naïve 🎉")) == "naïve 🎉"
    assert tokenizer.eos_token_ids[0] == 0


def test_what_transformers_says_of_older_folders_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpt"}))
    with pytest.raises(TokenizerError, match=r"transformers cannot make one .*the vocabulary of vocab\.json"):
        TextTokenizer.from_folder(tmp_path)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "tokenization_mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpt"}))
    with pytest.raises(TokenizerError):
        TextTokenizer.from_folder(tmp_path)
    assert not marker.exists()


def test_plain_bytes_are_those_of_ids_that_write_text(neox: TextTokenizer) -> None:
    table = neox.text_token_bytes()
    assert len(table) == neox.vocab_len
    assert all(table[token_id] is None for token_id in neox.special_ids)
    assert b"".join(table[token_id] or b"?" for token_id in neox.encode(" naïve 🎉  ")) == " naïve 🎉  ".encode()
