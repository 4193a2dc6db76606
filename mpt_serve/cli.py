"""The `mpt-serve` command."""

import argparse
import os
import sys
from collections.abc import Sequence

from mpt_serve import __version__
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.haproxy import haproxy_environment
from mpt_serve.one_loop import ONE_LOOP, PROXY_GUARD

__all__ = ["main"]

DEFAULT_FILE = "serve_config.yaml"

# Imports that take a second or more are inside the commands that need them.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="mpt-serve", description="MPT models behind an OpenAI-style API.")
    parser.add_argument("--version", action="version", version=f"mpt-serve {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    check = commands.add_parser("check", help="validate a Serve configuration without starting anything")
    check.add_argument("file", nargs="?", default=DEFAULT_FILE)
    check.set_defaults(run=_check)

    run = commands.add_parser("run", help="validate a Serve configuration, then pass it and all options to `serve run`")
    run.usage = "mpt-serve run [-h] [--haproxy] [FILE] [OPTIONS OF serve run]"
    run.add_argument("--haproxy", action="store_true", help="HAProxy instead of Serve's proxy: less CPU for each token")
    run.set_defaults(run=_run)

    docs = commands.add_parser("docs", help="print a reference page as Markdown")
    docs.add_argument("page", choices=["settings"])
    docs.set_defaults(run=_docs)

    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not _run:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    try:
        return int(arguments.run(arguments))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2


def _check(arguments: argparse.Namespace) -> int:
    from mpt_serve.configuration.serve_schema import check_file

    check_file(arguments.file)
    print(f"{arguments.file}: valid")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from ray.serve.scripts import cli as serve

    from mpt_serve.configuration.serve_schema import check_file
    from mpt_serve.graceful_run import ending_gracefully

    for name, value in {**ONE_LOOP, **PROXY_GUARD}.items():  # before Ray starts: all of its processes inherit it
        os.environ.setdefault(name, value)
    if arguments.haproxy:
        os.environ.update(haproxy_environment(os.environ))
    options = list(arguments.rest)
    file = options.pop(0) if options and not options[0].startswith("-") else DEFAULT_FILE
    check_file(file, here=True)
    with ending_gracefully():
        # In this process: importing Ray again would add seconds to every start.
        serve(["run", file, *options], prog_name="serve")
    return 0


def _docs(arguments: argparse.Namespace) -> int:
    from mpt_serve.configuration.reference import settings_reference

    print(settings_reference(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
