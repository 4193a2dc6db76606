"""The special tokens of a checkpoint folder, by name and as tokens that text is searched for.

Their places and precedence are those of transformers. `added_tokens_decoder` in tokenizer_config.json, which newer
versions write, stands for special_tokens_map.json and added_tokens.json as well. Without it, special_tokens_map.json
precedes tokenizer_config.json, and added_tokens.json adds tokens. What no file names has the default of the tokenizer's
class.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from mpt_serve.text.class_defaults import class_defaults
from mpt_serve.text.token_bytes import TokenizerError
from mpt_serve.text.tokenizer_files import read_json_object, tokenizer_class

__all__ = ["SpecialTokens", "read_special_tokens"]

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("extra_special_tokens", "additional_special_tokens")  # the newer name first
_PROPERTIES = frozenset({"single_word", "lstrip", "rstrip", "normalized", "special"})


@dataclass(frozen=True)
class SpecialTokens:
    """What a folder's files say about special tokens.

    named: texts by name, such as `eos_token`, as chat templates see them.
    """

    named: Mapping[str, str]
    _tokens: tuple[AddedToken, ...]
    _declared: Mapping[int, AddedToken]  # by the id that a file gives

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Add the tokens that a tokenizer lacks. Raises TokenizerError if one has another id than its file says."""
        own = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
        declared = [token for _, token in sorted(self._declared.items()) if repr(token) not in own]
        known = {token.content for token in (*tokenizer.get_added_tokens_decoder().values(), *declared)}
        others = [token for token in self._tokens if token.content not in known]
        tokenizer.add_tokens(declared + list({token.content: token for token in others}.values()))
        for token_id, token in self._declared.items():
            actual = tokenizer.token_to_id(token.content)
            if actual != token_id:
                raise TokenizerError(
                    f"the tokenizer's files give the added token {token.content!r} the id {token_id}, but its place in"
                    f" the vocabulary is {actual}: ids of added tokens must follow the vocabulary without gaps. Correct"
                    " the id in added_tokens.json or added_tokens_decoder, or save the tokenizer as tokenizer.json"
                )


def read_special_tokens(folder: Path, defaults: Mapping[str, str] | None = None) -> SpecialTokens:
    """Return the special tokens of a checkpoint folder. Raises TokenizerError for a file that cannot be read.

    defaults: of the tokenizer's class, where the caller knows them better than `class_defaults`.
    """
    config = read_json_object(folder / "tokenizer_config.json")
    stored = read_json_object(folder / "tokenizer.json")
    values = {key: value for key, value in config.items() if key.endswith("_token")}
    extra = next((config[key] for key in _LISTS if config.get(key)), None)
    declared: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        declared = dict(_decoder(config["added_tokens_decoder"]))
    else:
        extra = _overlay(read_json_object(folder / "special_tokens_map.json"), values, extra)
        special = {_text(value) for value in (*values.values(), *_items(extra))}
        declared = dict(_encoder(read_json_object(folder / "added_tokens.json"), special))
        declared |= dict(_serialized(stored.get("added_tokens")))
    if isinstance(extra, dict):  # tokens with names of their own
        values |= extra
        extra = None
    padding = stored.get("padding")
    if isinstance(padding, dict):
        values.setdefault("pad_token", padding.get("pad_token"))
    by_text = {token.content: token for token in declared.values()}
    explicit = {name: value for name, value in values.items() if _text(value)}
    tokens = [by_text.get(_text(value)) or _token(value) for value in (*explicit.values(), *_items(extra))]
    if defaults is None:
        defaults = class_defaults(tokenizer_class(folder))
    # A default that the vocabulary lacks is not added: no checkpoint was trained with it.
    named = {name: text for name, text in defaults.items() if name not in values}
    named |= {name: _text(value) for name, value in explicit.items()}
    order = sorted(named, key=lambda name: _NAMES.index(name) if name in _NAMES else len(_NAMES))
    return SpecialTokens({name: named[name] for name in order}, tuple(tokens), declared)


def _overlay(special_map: Mapping[str, Any], values: dict[str, Any], extra: Any) -> Any:
    """Put the tokens of special_tokens_map.json over those of tokenizer_config.json; return the unnamed ones."""
    for key, value in special_map.items():
        if key not in _LISTS:
            values[key] = value
        elif isinstance(value, list) and isinstance(extra, list) and key == _LISTS[0]:
            known = {_text(item) for item in extra}
            extra = [*extra, *(item for item in value if _text(item) not in known)]
        elif extra is None or key == _LISTS[0]:
            extra = value
    return extra


def _items(extra: Any) -> list[Any]:
    return [item for item in extra if _text(item)] if isinstance(extra, list) else []


def _decoder(entries: Any) -> Iterator[tuple[int, AddedToken]]:
    """Yield the tokens of `added_tokens_decoder` by id."""
    if not isinstance(entries, dict):
        raise TokenizerError(
            f"added_tokens_decoder in tokenizer_config.json must be an object of tokens by id, not a"
            f" {type(entries).__name__}"
        )
    for token_id, entry in entries.items():
        if not token_id.isdecimal() or not isinstance(entry, dict) or not _text(entry):
            raise TokenizerError(
                f"added_tokens_decoder in tokenizer_config.json has {token_id!r}: {str(entry)[:80]}; it must give an id"
                " the object of a token with its content"
            )
        yield int(token_id), AddedToken(entry["content"], **_properties(entry))


def _encoder(entries: Mapping[str, Any], special: set[str]) -> Iterator[tuple[int, AddedToken]]:
    """Yield the tokens of added_tokens.json by id."""
    for text, token_id in entries.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise TokenizerError(f"added_tokens.json gives {text[:80]!r} the id {str(token_id)[:80]}, not an integer")
        yield token_id, AddedToken(text, normalized=text not in special, special=text in special)


def _serialized(entries: Any) -> Iterator[tuple[int, AddedToken]]:
    """Yield the tokens that tokenizer.json has by itself, by id; the library checks them when it reads the file."""
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int) and _text(entry):
            yield entry["id"], AddedToken(entry["content"], **_properties(entry))


def _properties(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {key: value for key, value in entry.items() if key in _PROPERTIES and isinstance(value, bool)}


def _token(value: Any) -> AddedToken:
    properties = _properties(value) if isinstance(value, dict) else {}
    return AddedToken(_text(value), **{**properties, "special": True})


def _text(value: Any) -> str:
    """Return the text of a special token in a file: a string, or the object of an AddedToken; empty for all else."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
