"""The commands as one application, and how it ends."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mpt_serve import __version__
from mpt_serve.commands.audit import audit
from mpt_serve.commands.batch import batch
from mpt_serve.commands.bench import bench
from mpt_serve.commands.chat import chat
from mpt_serve.commands.check import check
from mpt_serve.commands.convert import convert
from mpt_serve.commands.docs import docs
from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.keys import keys
from mpt_serve.commands.logs import logs
from mpt_serve.commands.models import models
from mpt_serve.commands.run import RunCommand, run
from mpt_serve.commands.tokenize import tokenize
from mpt_serve.configuration.problems import ConfigurationError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """The group of all commands, in the order of their registration."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. What it could not do is printed to stderr, and the exit status says so."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(2) from error
        except CommandError as error:
            print(f"mpt-serve {ctx.invoked_subcommand}: {error}", file=sys.stderr)
            raise typer.Exit(error.status) from error


app = typer.Typer(
    name="mpt-serve",
    cls=_Commands,
    help="MPT models behind an OpenAI-style API.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # they would show the values of local variables
    no_args_is_help=True,
)
# `serve run` has its own options, which it parses itself.
app.command(cls=RunCommand, context_settings={"ignore_unknown_options": True})(run)
app.command()(check)
app.command()(chat)
app.command()(bench)
app.command()(batch)
app.command()(models)
app.command()(tokenize)
app.command()(logs)
app.command()(convert)
app.add_typer(keys, name="keys")
app.command()(audit)
app.command()(docs)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mpt-serve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version, and end")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. argv: without the program's name; None takes the process's."""
    status = os.EX_OK
    try:
        try:
            app(args=argv, prog_name="mpt-serve")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
    except OSError as error:  # such as stdout in a file on a full disk
        print(f"mpt-serve: {error}", file=sys.stderr)
        _leave_out_what_cannot_be_written()
        return 1
    return status


def _leave_out_what_cannot_be_written() -> None:
    """Let Python end without another attempt to write what is left of stdout."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
