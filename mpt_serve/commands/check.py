"""`mpt-serve check`: what can be known of a configuration before anything starts."""

import json
import sys
from typing import Annotated

import typer

from mpt_serve.commands.options import AsJson
from mpt_serve.commands.run import DEFAULT_FILE

__all__ = ["check"]


def check(
    file: Annotated[str, typer.Argument(help="the configuration")] = DEFAULT_FILE,
    for_cluster: Annotated[
        bool,
        typer.Option(
            "--for-cluster",
            help="the file is for other machines: check neither model folders nor this machine's resources",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Validate a Serve configuration and its model without starting anything."""
    from mpt_serve.preflight import check_config_file
    from mpt_serve.resources import Machine

    notes = check_config_file(file, models=not for_cluster, machine=None if for_cluster else Machine.here())
    if as_json:
        print(json.dumps({"file": file, "valid": True, "notes": notes}))
        return
    print(f"{file}: valid")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
