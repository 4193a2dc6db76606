"""Embeddings in prompts: safetensors files in base64, checked before anything is made of them."""

import asyncio
import base64
import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mpt_serve.engine.prompt_embeds import EMBEDS_DTYPES, PromptEmbeds
from mpt_serve.errors import RequestError
from mpt_serve.openai.backend import ModelInfo
from mpt_serve.openai.errors import InvalidValueError, UnsupportedParameterError

__all__ = ["read_prompt_embeds"]

_FIELD = "prompt_embeds"
_MAX_HEADER_BYTES = 64 * 1024  # of a file with one tensor; most are below 200
_HOW = "safetensors.torch.save({'prompt_embeds': embeds}), in base64"


async def read_prompt_embeds(files: Sequence[str], model: ModelInfo) -> list[PromptEmbeds]:
    """Return the embeddings in files of one tensor each. Raises InvalidValueError, UnsupportedParameterError."""
    if files and not model.prompt_embeds:
        raise UnsupportedParameterError(
            f"'{_FIELD}' is not enabled on this server: set engine.prompt_embeds to true in its settings.", param=_FIELD
        )
    params = [_FIELD] if len(files) == 1 else [f"{_FIELD}[{i}]" for i in range(len(files))]
    return [await asyncio.to_thread(_read, text, model, param) for text, param in zip(files, params, strict=True)]


def _read(text: str, model: ModelInfo, param: str) -> PromptEmbeds:
    most = _MAX_HEADER_BYTES + 4 * model.max_model_len * model.hidden_size
    if len(text) > 4 * math.ceil(most / 3):
        raise _wrong(
            f"has {len(text)} characters, more than the embeddings of {model.max_model_len} tokens, this model's"
            " maximum context length",
            param,
        )
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise _wrong(f"must be base64: {_HOW}", param) from None
    dtype, shape, begin = _tensor(data, param)
    hidden = model.hidden_size
    if len(shape) not in (2, 3) or shape[-1] != hidden or (len(shape) == 3 and shape[0] != 1) or 0 in shape:
        raise _wrong(
            f"must have the shape (tokens, {hidden}), with this model's hidden size; got {tuple(shape)}", param
        )
    try:
        return PromptEmbeds.from_bytes(memoryview(data)[begin:], dtype, tuple(shape))
    except RequestError as error:
        raise InvalidValueError(f"'{param}': {error}.", param=param) from None


def _tensor(data: bytes, param: str) -> tuple[str, list[int], int]:
    """Return dtype and shape of a safetensors file's tensor, and where its numbers begin, which fill the rest."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header: Any = None
    if begin <= min(len(data), 8 + _MAX_HEADER_BYTES):
        with contextlib.suppress(ValueError, RecursionError):
            header = json.loads(data[8:begin])
    if not isinstance(header, dict):
        if data.startswith((b"PK\x03\x04", b"\x80")):
            message = f"is a pickle, as torch.save writes; those can run code and are not read. Send {_HOW}"
            raise _wrong(message, param)
        raise _wrong(f"must be a safetensors file: {_HOW}", param)
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    if len(tensors) != 1:
        raise _wrong(f"must hold one tensor; got {len(tensors)}", param)
    dtype, shape = _described(tensors[0], param)
    size = math.prod(shape) * EMBEDS_DTYPES[dtype].itemsize
    if tensors[0].get("data_offsets") != [0, size] or size != len(data) - begin:
        raise _wrong(f"is damaged: its shape takes {size} bytes, and {len(data) - begin} follow its header", param)
    return dtype, shape, begin


def _described(tensor: Any, param: str) -> tuple[str, list[int]]:
    """Return the dtype and the shape of a tensor in a header."""
    if not isinstance(tensor, Mapping):
        raise _wrong("is damaged: its header does not describe a tensor", param)
    dtype, shape = tensor.get("dtype"), tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape) or len(shape) > 8:
        raise _wrong("is damaged: its header has no shape", param)
    if dtype not in tuple(EMBEDS_DTYPES):
        raise _wrong(f"must have numbers of the type {', '.join(EMBEDS_DTYPES)}, not {dtype!s:.16}", param)
    return dtype, shape


def _wrong(predicate: str, param: str) -> InvalidValueError:
    return InvalidValueError(f"'{param}' {predicate}.", param=param)
