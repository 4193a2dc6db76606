"""`mpt-serve tokenize`: the tokens of a text, by a server or by a model's own files."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.options import AsJson, Key

if TYPE_CHECKING:
    from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["tokenize"]


@dataclass(frozen=True)
class _Tokens:
    """Ids, and the tokens as the vocabulary writes them."""

    ids: Sequence[int]
    strings: Sequence[str]


def tokenize(
    text: Annotated[str | None, typer.Argument(help="the text; by default what is read from stdin")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="a folder, a GGUF file, a Hugging Face id, or embedded, which is the default; with --url the server's"
            " name for it",
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="of a server that tokenizes, instead of files")] = None,
    key: Key = None,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help="whether the tokenizer adds its own special tokens")
    ] = True,
    ids: Annotated[bool, typer.Option("--ids", help="print the ids alone, in one line")] = False,
    count: Annotated[bool, typer.Option("--count", help="print the number of tokens alone")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="the text is ids; print what they stand for")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the tokens of a text: a line with id and token for each, as the vocabulary writes them."""
    if ids + count + decode + as_json > 1:
        raise CommandError("--ids, --count, --decode and --json exclude each other", status=2)
    given = sys.stdin.read() if text is None else text
    if decode:
        print(_decode(_parse_ids(given), model, url, key))
        return
    tokens = _by_files(given, model, special) if url is None else _by_server(given, model, url, key, special)
    if as_json:
        content = {"count": len(tokens.ids), "tokens": tokens.ids, "token_strs": tokens.strings}
        print(json.dumps(content, ensure_ascii=False))
    elif count:
        print(len(tokens.ids))
    elif ids:
        print(*tokens.ids)
    else:
        for token_id, token in zip(tokens.ids, tokens.strings, strict=True):
            print(f"{token_id}\t{token}")


def _by_server(text: str, model: str | None, url: str, key: str | None, special: bool) -> _Tokens:
    from mpt_serve.commands.server_client import ServerClient

    body = {"prompt": text, "add_special_tokens": special, "return_token_strs": True}
    with ServerClient(url, key) as client:
        response = client.post("/tokenize", body if model is None else {**body, "model": model})
    try:
        return _Tokens(response["tokens"], response["token_strs"] or [""] * len(response["tokens"]))
    except (KeyError, TypeError) as error:
        raise CommandError(f"{url} does not tokenize as vLLM and mpt-serve do") from error


def _by_files(text: str, model: str | None, special: bool) -> _Tokens:
    tokenizer = _load(model)
    ids = tokenizer.encode(text, special)
    return _Tokens(ids, list(map(tokenizer.token, ids)))


def _load(model: str | None) -> "TextTokenizer":
    """Return a model's tokenizer, from its own files. Raises CommandError and ConfigurationError."""
    from mpt_serve.configuration.model_folder import EMBEDDED, tokenizer_folder
    from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError

    try:
        return TextTokenizer.from_folder(tokenizer_folder(model or EMBEDDED))
    except TokenizerError as error:
        raise CommandError(str(error), status=2) from error


def _decode(ids: Sequence[int], model: str | None, url: str | None, key: str | None) -> str:
    if url is None:
        tokenizer = _load(model)
        if max(ids, default=0) >= tokenizer.vocab_len:
            raise CommandError(f"ids must be below {tokenizer.vocab_len}, the tokenizer's size", status=2)
        return tokenizer.decode(ids)
    from mpt_serve.commands.server_client import ServerClient

    body = {"tokens": ids}
    with ServerClient(url, key) as client:
        return str(client.post("/detokenize", body if model is None else {**body, "model": model}).get("prompt"))


def _parse_ids(text: str) -> list[int]:
    """Return the ids in a text: separated by spaces or commas, also as a JSON list."""
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise CommandError("ids must be integers of at least 0, separated by spaces or commas", status=2)
    return list(map(int, words))
