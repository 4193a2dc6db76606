"""Every block of code in the documentation: which test runs it, or why none does, and that its commands exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from mpt_serve.commands.app import app
from mpt_serve.configuration.settings import Settings

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "cluster", "benchmarks", "training", "mpt_serve/embedded")

# By page and language. The file must name the page.
RUN = {
    ("README.md", "console"): "tests/openai/test_documented_requests.py",  # of its commands of mpt-serve, see below
    ("README.md", "python"): "tests/llm/test_notebook.py",
    ("docs/batches.md", "json"): "tests/openai/test_documented_requests.py",
    ("docs/easydel.md", "python"): "tests/easydel/test_jax_server.py",
    ("docs/index.md", "bash"): "tests/openai/test_documented_requests.py",
    ("docs/library.md", "python"): "tests/llm/test_llm.py",
    ("docs/structured-outputs.md", "console"): "tests/openai/test_documented_requests.py",
    ("docs/tools.md", "console"): "tests/openai/test_documented_requests.py",
    ("docs/uses.md", "bash"): "tests/serve/test_serve_run.py",
    ("docs/uses.md", "text"): "tests/serve/test_serve_run.py",
}
# The commands of these exist with their options, and their settings are valid, as tests below say.
NOT_RUN = {
    ("CONTRIBUTING.md", "bash"): "the checks themselves, and a build by a cross compiler that need not be here",
    ("README.md", "bash"): "installs everything: what continuous integration does before it runs the tests",
    ("README.md", "yaml"): "a model that is not here",
    (
        "SECURITY.md",
        "console",
    ): "tokens and keys of the machine that it runs on; tests/serve/test_api_keys.py has others",
    ("SECURITY.md", "nginx"): "a proxy that is not here",
    ("SECURITY.md", "yaml"): "a file of keys that is not here",
    ("benchmarks/README.md", "bash"): "installs other engines, and takes the machine for hours",
    ("cluster/README.md", "bash"): "needs a container runtime; tests/cluster/test_container_image.py reads the file",
    ("docs/batches.md", "bash"): "hours of requests to a server; tests/commands/test_batch_command.py sends short ones",
    ("docs/batches.md", "python"): "polls a batch; tests/openai/test_files_and_batches.py makes the same calls",
    ("docs/architecture.md", "mermaid"): "a diagram; tests/test_imports.py has it as a table",
    ("docs/engine.md", "python"): "a tensor of the reader's; tests/serve/test_complete_engine.py sends such a file",
    ("docs/harnesses.md", "bash"): "installs another program, which needs a running server",
    ("docs/formats.md", "bash"): "checkpoints that are not here; tests/test_convert_command.py converts small ones",
    ("docs/quantization.md", "bash"): "measures for minutes",
    ("docs/quantization.md", "yaml"): "a model that is not here",
    ("docs/tracing.md", "bash"): "a collector that is not here; tests/serve/test_tracing.py starts one",
    ("training/README.md", "sh"): "trains for hours; tests/training runs each step on a small model",
}


class Block(NamedTuple):
    """A fenced block with a language."""

    page: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for page in sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md")):
        for match in re.finditer(
            r"^ *(?P<fence>`{3,})(?P<language>\w+)\n(?P<text>.*?)^ *(?P=fence) *$",
            page.read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        ):
            yield Block(page.relative_to(ROOT).as_posix(), match["language"], match["text"])


BLOCKS = list(blocks())


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield the page and each line of a shell, without its prompt, comment and redirection."""
    for block in BLOCKS:
        if block.language in ("bash", "sh", "console"):
            for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
                if block.language != "console" or line.startswith("$ "):
                    yield block.page, re.split(r"\s+#|\s+>", line.removeprefix("$ "))[0].strip()


def commands_of(program: str) -> list[Any]:
    """Return the arguments of each call of a program, as parameters of a test."""
    found = []
    for page, line in command_lines():
        for part in re.split(r"\||&&|;", line):
            words = shlex.split(part, comments=True) if part.count("'") % 2 == 0 else []
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if words and words[0] == program:
                found.append(pytest.param(words[1:], id=f"{page}: {' '.join(words)}"))
    return found


def test_every_block_is_run_or_says_why_not() -> None:
    kinds = {(block.page, block.language) for block in BLOCKS}
    listed = {key for key in kinds if (key in RUN) != (key in NOT_RUN)}
    generated = {"docs/api.md", "docs/cli.md", "docs/metrics.md", "docs/settings.md"}
    assert {key for key in kinds - listed if key[0] not in generated} <= {("docs/uses.md", "python")}  # within a text
    assert {*RUN, *NOT_RUN} <= kinds


def test_the_tests_that_run_them_name_their_pages() -> None:
    for (page, _), file in RUN.items():
        assert Path(page).name in (ROOT / file).read_text(encoding="utf-8"), file


@pytest.mark.parametrize("arguments", commands_of("mpt-serve"))
def test_commands_take_their_arguments(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    context, name = None, "mpt-serve"
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        if not hasattr(command, "resolve_command") or not context._protected_args + context.args:
            break
        name, command, arguments = command.resolve_command(context, context._protected_args + context.args)


@pytest.mark.parametrize("arguments", commands_of("python"))
def test_programs_of_the_repository_have_their_options(arguments: list[str]) -> None:
    if arguments[:2] == ["-m", "build"]:
        return
    source = ROOT / f"{arguments[1].replace('.', '/')}.py" if arguments[0] == "-m" else ROOT / arguments[0]
    text = "".join(file.read_text(encoding="utf-8") for file in source.parent.glob("*.py"))  # options may be shared
    for option in (argument for argument in arguments[1:] if argument.startswith("--")):
        assert f'"{option}"' in text, f"{source.name} has no {option}"


def test_scripts_exist() -> None:
    scripts = {script for _, line in command_lines() for script in re.findall(r"(?<!/)\bscripts/[\w-]+", line)}
    assert len(scripts) >= 4
    for script in scripts:
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: block.page)
def test_settings_are_valid(block: Block) -> None:
    Settings.from_mapping(yaml.safe_load(block.text)["args"])
