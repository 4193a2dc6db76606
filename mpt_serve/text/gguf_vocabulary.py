"""Writes a tokenizer into a GGUF file, as llama.cpp's converter does."""

import json
from collections.abc import Mapping
from typing import Any

from mpt_serve.text.token_bytes import TokenizerError
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["add_vocabulary"]

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_SPECIAL = {
    "bos_token": "add_bos_token_id", "eos_token": "add_eos_token_id", "unk_token": "add_unk_token_id",
    "sep_token": "add_sep_token_id", "pad_token": "add_pad_token_id", "cls_token": "add_cls_token_id",
    "mask_token": "add_mask_token_id",
}  # fmt: skip


def add_vocabulary(writer: Any, tokenizer: TextTokenizer, template: str | None, size: int) -> None:
    """Add a tokenizer and a chat template to the metadata that gguf-py's writer collects.

    size: of the model's embedding; what the tokenizer lacks of it are unused tokens.
    Raises TokenizerError for a tokenizer that the format has no name for.
    """
    state = json.loads(json.loads(tokenizer.serialized)["tokenizer"])
    pre = _pre(state)
    if "sentencepiece" in json.loads(tokenizer.serialized) or pre is None:
        raise TokenizerError(
            "only byte-level tokenizers that cut texts as GPT-2's or GPT-NeoX's do are written to GGUF files; leave"
            " this one out (--no-tokenizer), or convert with llama.cpp"
        )
    added = {token["id"]: token for token in state["added_tokens"]}
    names = {token_id: token for token, token_id in state["model"]["vocab"].items()}
    names |= {token_id: token["content"] for token_id, token in added.items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(max(size, tokenizer.vocab_len))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([_kind(i, names, added) for i in range(len(tokens))])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    if merges:  # the format has no empty lists
        writer.add_token_merges(merges)
    for name, text in tokenizer.special_tokens.items():
        token_id = tokenizer.token_id(text)
        if name in _SPECIAL and token_id is not None:
            getattr(writer, _SPECIAL[name])(token_id)
    if template is not None:
        writer.add_chat_template(template)


def _pre(state: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name of how texts are cut into words; None where there is none."""
    cut, model = state["pre_tokenizer"] or {}, state["model"]
    plain = model["type"] == "BPE" and not model.get("byte_fallback") and not model.get("dropout")
    if not plain or cut.get("type") != "ByteLevel" or not cut.get("use_regex", True) or cut.get("add_prefix_space"):
        return None
    normalizer = (state["normalizer"] or {}).get("type")
    return {"NFC": "mpt", None: "gpt-2"}.get(normalizer)


def _kind(token_id: int, names: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> int:
    if token_id in added:
        return _CONTROL if added[token_id]["special"] else _USER_DEFINED
    return _NORMAL if token_id in names else _UNUSED
