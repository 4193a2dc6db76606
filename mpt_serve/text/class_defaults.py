"""The special tokens that tokenizer classes have where no file names any."""

import contextlib
import inspect
from collections.abc import Mapping

__all__ = ["class_defaults"]

_END_OF_TEXT = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")

# transformers takes seconds to import, so the classes of MPT checkpoints are listed here; a test compares them.
_LISTED: Mapping[str, Mapping[str, str]] = {
    "PreTrainedTokenizer": {},
    "TokenizersBackend": {},
    "BloomTokenizer": {},
    "GPTNeoXTokenizer": {**_END_OF_TEXT, "pad_token": "<|padding|>"},
    "GPT2Tokenizer": _END_OF_TEXT,
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    # Python code of checkpoints: SEA-LION's and Replit's.
    "SEABPETokenizer": {"unk_token": "<unk>", "eos_token": "<|endoftext|>"},
    "ReplitLMTokenizer": {"unk_token": "<|unk|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
}


def class_defaults(name: str | None) -> Mapping[str, str]:
    """Return the default special tokens of a tokenizer class by name; none for a class that nobody knows."""
    if name is None:
        return {}
    if name not in _LISTED:
        return _defaults_in_transformers(name)
    return _LISTED[name]


def _defaults_in_transformers(name: str) -> Mapping[str, str]:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    with contextlib.suppress(ImportError, AttributeError):  # a class whose own requirements are not installed
        found = tokenizer_class_from_name(name)
        if found is not None:
            parameters = inspect.signature(found.__init__).parameters.values()
            tokens = {p.name: p.default for p in parameters if p.name.endswith("_token")}
            named = {key: getattr(value, "content", value) for key, value in tokens.items()}
            return {key: text for key, text in named.items() if isinstance(text, str)}
    return {}
