"""The program as a whole: help, completion, exit status, its reference page, and what it costs to start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mpt_serve.commands.app import app
from mpt_serve.commands.reference import commands_reference

ROOT = Path(__file__).parents[2]
PROGRAM = typer.main.get_command(app)
COMMANDS = ("run", "check", "chat", "batch", "bench", "models", "tokenize", "logs", "convert", "keys", "audit", "docs")


def start(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "mpt_serve", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=env).stdout


def test_these_are_the_commands() -> None:
    context = typer.Context(PROGRAM)
    assert set(PROGRAM.list_commands(context)) == set(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(command: str, option: str) -> None:
    result = CliRunner().invoke(app, [command, option])
    assert result.exit_code == 0
    assert f"mpt-serve {command}" in result.output


def test_every_parameter_has_help() -> None:
    page = commands_reference(PROGRAM)
    assert not [line for line in page.splitlines() if line.endswith("|  |")]


def test_the_reference_page_is_current() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == commands_reference(PROGRAM), "run: mpt-serve docs commands > docs/cli.md"
    result = CliRunner().invoke(app, ["docs", "commands"])
    assert (result.exit_code, result.output) == (0, written)


def test_the_module_is_the_program() -> None:
    assert "mpt-serve 0" in start("--version")


def test_shells_complete_commands() -> None:
    completed = start(_MPT_SERVE_COMPLETE="complete_bash", COMP_WORDS="mpt-serve ch", COMP_CWORD="1")
    assert "check" in completed.split()
    # In a shell, which the program looks for among the processes that it was started by.
    command = ["bash", "-c", f"{sys.executable} -W ignore -m mpt_serve --show-completion; exit $?"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "_MPT_SERVE_COMPLETE" in shown


def test_the_program_starts_without_the_heavy_libraries() -> None:
    """Help and completion must not wait for what single commands need."""
    heavy = ("jax", "numpy", "ray", "flax", "transformers", "tokenizers", "huggingface_hub", "httpx", "rich")
    program = f"import sys, mpt_serve.cli; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-W", "ignore", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout == "[]\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is a full disk")
@pytest.mark.parametrize("arguments", [["docs", "settings"], ["--help"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-W", "ignore", "-m", "mpt_serve", *arguments]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "mpt-serve: [Errno 28] No space left on device\n"
