"""`mpt-serve docs`: the reference pages that are generated, and a configuration to begin with."""

from typing import Annotated, Literal

import typer

__all__ = ["docs"]


def docs(
    context: typer.Context,
    page: Annotated[
        Literal["commands", "settings", "configuration"],
        typer.Argument(help="commands: of this program; configuration: a serve_config.yaml to change"),
    ],
) -> None:
    """Print a reference page as Markdown, or a configuration that serves the embedded model."""
    if page == "configuration":
        from mpt_serve.configuration.config_file import STARTING_POINT

        print(STARTING_POINT.read_text(encoding="utf-8"), end="")
        return
    if page == "commands":
        from mpt_serve.commands.reference import commands_reference

        print(commands_reference(context.find_root().command), end="")
        return
    from mpt_serve.configuration.reference import settings_reference

    print(settings_reference(), end="")
