"""`mpt-serve keys`: API keys, and the lines of a key file that state them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mpt_serve.access.api_key import ApiKey, KeyLineError, append_line, new_key, record_of
from mpt_serve.access.key_file import read_keys, remove_keys
from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.options import AsJson

__all__ = ["keys"]


class Scope(StrEnum):
    """What a key may be used for; see `SCOPES`."""

    API = "api"
    ADMIN = "admin"


Name = Annotated[str, typer.Argument(help="of its owner; all keys of a name share limits")]
Scopes = Annotated[list[Scope] | None, typer.Option("--scope", help="what it is for; repeat it for both (api)")]
Requests = Annotated[int | None, typer.Option(min=1, metavar="N", help="instead of access.requests_per_minute")]
Tokens = Annotated[int | None, typer.Option(min=1, metavar="N", help="instead of access.tokens_per_minute")]
KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="a key file, as access.key_file names it")]


class _Keys(TyperGroup):
    """The group of these commands; `keys NAME` is `keys create NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the arguments after those of the group."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["create", *args]
        return super().parse_args(ctx, args)


keys = typer.Typer(cls=_Keys, no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Make, list and revoke API keys. `keys NAME` is short for `keys create NAME`."""


@keys.command()
def create(
    name: Name,
    scope: Scopes = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    file: Annotated[Path | None, typer.Option(help="append the line to this file, and print the key alone")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key, and the line that states it in access.key_file."""
    with _failures():
        key, made = new_key(name, _scopes(scope), requests_per_minute, tokens_per_minute)
    if file is not None:
        try:
            append_line(file, made)
        except OSError as error:
            raise CommandError(f"the line was not written: {error}") from error
    if as_json:
        print(json.dumps({"key": key, **_row(made), "line": made.line()}))
    else:
        print(f"key:  {key}\nline: {made.line()}" if file is None else key)


@keys.command(name="hash")
def hash_key(
    name: Name, scope: Scopes = None, requests_per_minute: Requests = None, tokens_per_minute: Tokens = None
) -> None:
    """Print a new line for a key that exists: to change its name, scopes or limits. The key is read from stdin."""
    key = sys.stdin.readline().strip() if not sys.stdin.isatty() else typer.prompt("key", hide_input=True, err=True)
    with _failures():
        print(record_of(key, name, _scopes(scope), requests_per_minute, tokens_per_minute).line())


@keys.command(name="list")
def list_keys(file: KeyFile, as_json: AsJson = False) -> None:
    """List the keys of a key file: ids, names, scopes and limits. The keys themselves are kept nowhere."""
    with _failures():
        rows = [_row(key) for key in read_keys(file)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        limits = [f"{name}={row[name]}" for name in ("requests_per_minute", "tokens_per_minute") if row[name]]
        print("  ".join([row["id"], row["name"], ",".join(row["scopes"]), *limits]))


@keys.command()
def revoke(
    file: KeyFile,
    names: Annotated[list[str], typer.Argument(metavar="ID", help="ids of keys, or names of their owners")],
) -> None:
    """Remove keys from a key file. Servers that use the file refuse them within two seconds."""
    with _failures():
        for key in remove_keys(file, names):
            print(f"revoked {key.id}  {key.name}")


def _row(key: ApiKey) -> dict[str, Any]:
    limits = {"requests_per_minute": key.requests_per_minute, "tokens_per_minute": key.tokens_per_minute}
    return {"id": key.id, "name": key.name, "scopes": sorted(key.scopes), **limits}


def _scopes(scopes: list[Scope] | None) -> list[str]:
    return [scope.value for scope in scopes or ()] or ["api"]


@contextmanager
def _failures() -> Iterator[None]:
    """Raise CommandError for what cannot be written, read or stated."""
    try:
        yield
    except KeyLineError as error:
        raise CommandError(str(error)) from error
    except ValueError as error:
        raise CommandError(str(error), status=2) from error
    except OSError as error:
        raise CommandError(str(error)) from error
