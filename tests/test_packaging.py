"""What a release is made of: metadata, requirements and the workflow that builds it agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mpt_serve.cli import main

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LINES = (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
VERSIONS = {canonicalize_name(name): version for name, version in LINES}
RELEASE = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())


def commands() -> str:
    """Return every shell command of the release's workflow."""
    return "\n".join(step["run"] for job in RELEASE["jobs"].values() for step in job["steps"] if "run" in step)


def test_the_packaged_configuration_is_the_repositorys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "configuration"]) == 0
    written = (ROOT / "serve_config.yaml").read_text(encoding="utf-8")
    assert capsys.readouterr().out == written, "cp serve_config.yaml mpt_serve/configuration/"


def test_the_tested_versions_are_those_that_the_requirements_allow() -> None:
    groups = PYPROJECT["dependency-groups"]
    texts = [*PYPROJECT["build-system"]["requires"], *PROJECT["dependencies"], *(r for g in groups.values() for r in g)]
    for requirement in map(Requirement, texts):
        assert VERSIONS[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_wheels_are_built_with_the_oldest_jaxlib_that_they_may_meet() -> None:
    """Later versions load libraries of earlier ones, never the other way round."""
    specifiers = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    (built,) = (r.specifier for r in map(Requirement, PYPROJECT["build-system"]["requires"]) if r.name == "jaxlib")
    assert specifiers["jax"] == SpecifierSet(">=0.10")
    assert built == SpecifierSet("==0.10.*")
    for extra in PROJECT["optional-dependencies"].values():
        for requirement in map(Requirement, extra):
            assert requirement.specifier == specifiers.get(requirement.name, requirement.specifier)


def test_a_release_tries_every_python_that_the_metadata_names() -> None:
    named = {
        c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    }
    tried = {row["python"] for row in RELEASE["jobs"]["try"]["strategy"]["matrix"]["include"]}
    assert named <= tried
    assert all(python in SpecifierSet(PROJECT["requires-python"]) for python in tried)


def test_every_architecture_is_built_on_its_own_and_tried() -> None:
    built = RELEASE["jobs"]["wheels"]["strategy"]["matrix"]["include"]
    assert {row["arch"] for row in built} == {"x86_64", "aarch64"}
    tried = RELEASE["jobs"]["try"]["strategy"]["matrix"]["include"]
    assert {(row["arch"], row["runner"]) for row in tried} == {(row["arch"], row["runner"]) for row in built}
    assert all(f"manylinux-{row['arch']}-image" in PYPROJECT["tool"]["cibuildwheel"] for row in built)


def test_a_release_needs_that_everything_was_tried_and_becomes_a_draft() -> None:
    assert RELEASE[True] == {"push": {"tags": ["v*"]}}  # YAML takes the key `on` for a truth value
    assert set(RELEASE["jobs"]["draft"]["needs"]) == {"sdist", "try"}
    assert RELEASE["jobs"]["try"]["needs"] == "wheels"
    assert "gh release create" in commands()
    assert "--draft" in commands()


def test_the_workflow_runs_scripts_that_exist() -> None:
    scripts = set(re.findall(r"scripts/[\w-]+", commands()))
    assert scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o100
