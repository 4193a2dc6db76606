"""`mpt-serve docs`: the reference pages that are generated."""

from typing import Annotated, Literal

import typer

__all__ = ["docs"]


def docs(
    context: typer.Context,
    page: Annotated[Literal["commands", "settings"], typer.Argument(help="commands: of this program")],
) -> None:
    """Print a reference page as Markdown."""
    if page == "commands":
        from mpt_serve.commands.reference import commands_reference

        print(commands_reference(context.find_root().command), end="")
        return
    from mpt_serve.configuration.reference import settings_reference

    print(settings_reference(), end="")
