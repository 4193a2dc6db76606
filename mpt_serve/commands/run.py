"""`mpt-serve run`: a validated configuration, served until the process is stopped."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mpt_serve.one_loop import LOOPBACK, ONE_LOOP, PERIODS, PROXY_GUARD, new_link_key

__all__ = ["DEFAULT_FILE", "RunCommand", "run"]

DEFAULT_FILE = "serve_config.yaml"


class RunCommand(TyperCommand):
    """The command with the usage that it has: what looks like an argument are options of another program too."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what the usage line shows after the command."""
        return ["[FILE]", "[OPTIONS OF serve run]"]


def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE] [OPTIONS OF serve run]",
            help=f"the configuration ({DEFAULT_FILE}), and options such as --address auto or --app-dir DIR",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Validate a Serve configuration, then serve it: the file and all options are passed on to `serve run`."""
    options = list(arguments or ())
    file = options.pop(0) if options and not options[0].startswith("-") else DEFAULT_FILE
    in_cluster = "RAY_ADDRESS" in os.environ or any(option.split("=")[0] in ("-a", "--address") for option in options)
    # Before Ray is imported, which reads some of them.
    _set_variables({**ONE_LOOP, **PROXY_GUARD, **PERIODS, **new_link_key()})
    if not in_cluster and not _has_started_ray():
        _set_variables(LOOPBACK)
    _require_startable(file, in_cluster)
    _set_variables(_proxy_limits(file))
    from mpt_serve.serve_run import run_file  # after the environment is set

    raise typer.Exit(run_file(file, options))


def _has_started_ray() -> bool:
    """Return whether `ray start` has left the address of a cluster, which Ray takes where none is given."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return (Path(folder) / "ray" / "ray_current_cluster").exists()


def _set_variables(variables: Mapping[str, str]) -> None:
    """Set environment variables that are not set; all of Ray's processes inherit them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _proxy_limits(file: str) -> Mapping[str, str]:
    from mpt_serve.configuration.config_file import ConfigFile
    from mpt_serve.configuration.proxy_limits import ProxyLimits

    return ProxyLimits.of(ConfigFile(file).data).variable()


def _require_startable(file: str, in_cluster: bool) -> None:
    """Raise ConfigurationError for what would keep the file's applications from starting, as far as it can be known.

    Print what else there is to know of them: loading a large model takes minutes.
    """
    from mpt_serve.preflight import check_config_file
    from mpt_serve.resources import Machine

    for note in check_config_file(file, machine=None if in_cluster else Machine.here()):
        print(f"note: {note}", file=sys.stderr, flush=True)
