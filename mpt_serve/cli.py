"""The `mpt-serve` command."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpt_serve import __version__
from mpt_serve.access.api_key import SCOPES, append_line, new_key
from mpt_serve.access.audit_log import AuditError, check_audit_file
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.one_loop import ONE_LOOP, PROXY_GUARD, new_link_key

__all__ = ["main"]

DEFAULT_FILE = "serve_config.yaml"

# Imports that take a second or more are inside the commands that need them.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="mpt-serve", description="MPT models behind an OpenAI-style API.")
    parser.add_argument("--version", action="version", version=f"mpt-serve {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    check = commands.add_parser("check", help="validate a Serve configuration and its model without starting anything")
    check.add_argument("file", nargs="?", default=DEFAULT_FILE)
    check.add_argument(
        "--for-cluster",
        action="store_true",
        help="the file is for other machines: check neither model folders nor this machine's resources",
    )
    check.set_defaults(run=_check)

    run = commands.add_parser("run", help="validate a Serve configuration, then pass it and all options to `serve run`")
    run.usage = "mpt-serve run [-h] [FILE] [OPTIONS OF serve run]"
    run.set_defaults(run=_run)

    convert = commands.add_parser("convert", help="write a checkpoint in another format")
    convert.add_argument("source", help="a checkpoint folder, an adapter's folder, a GGUF file or a Hugging Face id")
    convert.add_argument("target", help="the folder to write, or the GGUF file")
    convert.add_argument(
        "--to", choices=["llm-foundry", "transformers", "gguf"], help="default: gguf for a .gguf target"
    )
    convert.add_argument(
        "--type", help="bfloat16, float16, float32; for GGUF f32, f16, bf16, q8_0, q4_0. Default: as it is; GGUF: f16"
    )
    convert.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer out")
    convert.set_defaults(run=_convert)

    keys = commands.add_parser("keys", help="make an API key, and the line that states it in access.key_file")
    keys.add_argument("name", help="of its owner; all keys of a name share limits")
    keys.add_argument("--scope", action="append", choices=SCOPES, help="what it is for; repeat it for both (api)")
    keys.add_argument("--requests-per-minute", type=_count, metavar="N", help="instead of access.requests_per_minute")
    keys.add_argument("--tokens-per-minute", type=_count, metavar="N", help="instead of access.tokens_per_minute")
    keys.add_argument("--file", type=Path, help="append the line to this file, and print the key alone")
    keys.set_defaults(run=_keys)

    audit = commands.add_parser("audit", help="check that no line of an audit log was changed, removed or inserted")
    audit.add_argument("file", nargs="+", type=Path)
    audit.set_defaults(run=_audit)

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
    from mpt_serve.preflight import check_config_file
    from mpt_serve.resources import Machine

    elsewhere = arguments.for_cluster
    notes = check_config_file(arguments.file, models=not elsewhere, machine=None if elsewhere else Machine.here())
    print(f"{arguments.file}: valid")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    options = list(arguments.rest)
    file = options.pop(0) if options and not options[0].startswith("-") else DEFAULT_FILE
    in_cluster = "RAY_ADDRESS" in os.environ or any(option.split("=")[0] in ("-a", "--address") for option in options)
    _set_variables({**ONE_LOOP, **PROXY_GUARD, **new_link_key()})  # before Ray is imported, which reads some of them
    _require_startable(file, in_cluster)
    _set_variables(_proxy_limits(file))
    from mpt_serve.serve_run import run_file  # after the environment is set

    return run_file(file, options)


def _set_variables(variables: Mapping[str, str]) -> None:
    """Set environment variables that are not set; all of Ray's processes inherit them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _proxy_limits(file: str) -> Mapping[str, str]:
    from mpt_serve.configuration.config_file import ConfigFile
    from mpt_serve.configuration.proxy_limits import ProxyLimits

    return ProxyLimits.of(ConfigFile(file).data).variable()


def _require_startable(file: str, in_cluster: bool) -> None:
    """Raise ConfigurationError for what would keep the file's applications from starting, as far as it can be known."""
    from mpt_serve.preflight import check_config_file
    from mpt_serve.resources import Machine

    check_config_file(file, machine=None if in_cluster else Machine.here())


def _convert(arguments: argparse.Namespace) -> int:
    from mpt_serve.convert import convert

    path = convert(arguments.source, arguments.target, arguments.to, arguments.type, not arguments.no_tokenizer)
    print(f"wrote {path}")
    return 0


def _count(text: str) -> int:
    """Return an argument as an integer of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def _keys(arguments: argparse.Namespace) -> int:
    """Print a new key, which nothing keeps, and the line that states it."""
    limits = arguments.requests_per_minute, arguments.tokens_per_minute
    try:
        key, made = new_key(arguments.name, arguments.scope or ["api"], *limits)
    except ValueError as error:
        print(f"mpt-serve keys: {error}", file=sys.stderr)
        return 2
    if arguments.file is None:
        print(f"key:  {key}\nline: {made.line()}")
        return 0
    try:
        append_line(arguments.file, made)
    except OSError as error:
        print(f"mpt-serve keys: the line was not written: {error}", file=sys.stderr)
        return 1
    print(key)
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    try:
        for file in arguments.file:
            print(f"{file}: {check_audit_file(file)} records, unbroken")
    except (AuditError, OSError) as error:
        print(f"mpt-serve audit: {error}", file=sys.stderr)
        return 1
    return 0


def _docs(arguments: argparse.Namespace) -> int:
    from mpt_serve.configuration.reference import settings_reference

    print(settings_reference(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
