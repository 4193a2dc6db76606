"""cluster/Dockerfile, read without a container runtime: what it copies exists, and its versions are the project's."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from mpt_serve.cli import main

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
IGNORED = (ROOT / ".dockerignore").read_text().split()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


class Instruction(NamedTuple):
    """One of the file. name: such as RUN. options: those with two dashes."""

    name: str
    options: list[str]
    rest: str


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage; those before the first FROM belong to it."""
    text = (CLUSTER / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    found: list[list[Instruction]] = [[]]
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        name, _, rest = line.partition(" ")
        options = []
        while option := re.match(r"--\S+\s+", rest):
            options.append(option[0].strip())
            rest = rest[option.end() :]
        if name == "FROM" and any(instruction.name == "FROM" for instruction in found[-1]):
            found.append([])
        found[-1].append(Instruction(name, options, rest.strip()))
    return found


def of_the_context(stage: list[Instruction]) -> set[str]:
    """Return the paths of the repository that a stage copies or mounts."""
    paths = set()
    for name, options, rest in stage:
        if name == "COPY" and not any(option.startswith("--from") for option in options):
            paths |= set(shlex.split(rest)[:-1])
        for mount in options:
            fields = dict(part.split("=") for part in mount.removeprefix("--mount=").split(",") if "=" in part)
            if mount.startswith("--mount=") and "from" not in fields:
                paths.add(fields["source"])
    return paths


def values(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.rest for instruction in stage if instruction.name == name]


def test_what_it_copies_is_sent_to_the_builder() -> None:
    build, image = stages()
    assert of_the_context(build) == {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "model", "mpt_serve"}
    assert of_the_context(image) == {"constraints.txt", "pyproject.toml"}
    for path in of_the_context(build) | of_the_context(image):
        assert (ROOT / path).exists()
        assert path not in IGNORED


def test_the_build_has_what_the_wheel_is_made_of() -> None:
    """The packages, the metadata's files and the build's requirements, as pyproject.toml names them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build, _ = stages()
    needed = {PROJECT["readme"], *PROJECT["license-files"], *project["tool"]["scikit-build"]["wheel"]["packages"]}
    assert needed < of_the_context(build)
    installed = " ".join(values(build, "RUN"))
    for requirement in project["build-system"]["requires"]:
        assert re.split(r"[=>]", requirement)[0] in installed


def test_the_base_has_the_projects_ray_and_python() -> None:
    bases = re.findall(r"rayproject/ray:(\S+?)[` ]*(?:\s|$|\|)", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    bases += re.findall(r"rayproject/ray:([\w.-]+)", (CLUSTER / "README.md").read_text())
    assert len(bases) >= 4
    for base in bases:
        assert base.startswith(f"{VERSIONS['ray']}-py311"), base
    for resource in (CLUSTER / "kuberay").glob("*.yaml"):
        assert f'rayVersion: "{VERSIONS["ray"]}"' in resource.read_text()


def test_nothing_runs_as_root() -> None:
    for stage in stages():
        assert values(stage, "USER")[-1] == "ray"
    image = stages()[-1]
    assert values(image, "USER") == ["ray"]
    assert "sudo" not in " ".join(values(image, "RUN"))


def test_the_image_has_no_compiler_and_no_caches() -> None:
    image = stages()[-1]
    assert "g++" not in " ".join(values(image, "RUN"))
    for line in values(stages()[0], "RUN") + values(image, "RUN"):
        for command in re.findall(r"pip install [^&]*", line):
            assert "--no-cache-dir" in command
        assert ("apt-get install" in line) == ("rm -rf /var/lib/apt/lists/*" in line)


def test_dependencies_come_before_the_code_that_changes() -> None:
    image = stages()[-1]
    lines = values(image, "RUN")
    first = next(index for index, line in enumerate(lines) if "--requirement" in line)
    wheel = next(index for index, line in enumerate(lines) if ".whl" in line)
    assert first < wheel
    assert "--no-deps" in lines[wheel]


def test_the_extras_of_the_documentation_exist() -> None:
    text = (CLUSTER / "Dockerfile").read_text() + (CLUSTER / "README.md").read_text()
    named = {extra for extras in re.findall(r"EXTRA=([\w,]+)", text) for extra in extras.split(",")}
    assert {"cuda", "tpu", "otel"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_requirements_are_the_projects_and_those_of_the_extras(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = (line for line in values(stages()[-1], "RUN") if "--requirement" in line)
    program = re.search(r'python -c "(.*?)" >/tmp/requirements.txt', line)
    assert program
    source = program[1].replace("/tmp/pyproject.toml", str(ROOT / "pyproject.toml")).replace("${EXTRA}", "cuda,otel")
    exec(compile(source, "Dockerfile", "exec"), {})
    extras = PROJECT["optional-dependencies"]
    assert capsys.readouterr().out.splitlines() == [*PROJECT["dependencies"], *extras["cuda"], *extras["otel"]]


def test_the_container_serves_and_is_found_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    image = stages()[-1]
    assert json.loads(values(image, "CMD")[0]) == ["mpt-serve", "run"]
    assert values(image, "EXPOSE") == ["8000"]
    (check,) = values(image, "HEALTHCHECK")
    program = json.loads(check.removeprefix("CMD "))[2]
    compile(program, "HEALTHCHECK", "exec")
    assert "http://127.0.0.1:8000/health" in program
    (line,) = (line for line in values(image, "RUN") if "serve_config.yaml" in line)
    (before, after) = re.findall(r"host: [\d.]+", line)
    assert main(["docs", "configuration"]) == 0
    configuration = capsys.readouterr().out
    assert "port: 8000" in configuration
    assert (before in configuration, after) == (True, "host: 0.0.0.0")
