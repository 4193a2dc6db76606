"""Finding the configuration file of a plain `serve run`."""

from pathlib import Path

import pytest

from mpt_serve.driver import find_serve_run, serve_run_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "serve.yaml").touch()
    (tmp_path / "other").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "/venv/bin/python /venv/bin/serve run serve.yaml",
        "python -m ray.serve.scripts run serve.yaml",
        "python /venv/bin/serve run --app-dir other --non-blocking serve.yaml",
        "python /venv/bin/serve run serve.yaml --address auto -r",
        "python /venv/bin/serve run ./other/../serve.yaml",
    ],
)
def test_the_file_is_found_among_the_options(folder: Path, command: str) -> None:
    file = serve_run_file(command.split(), folder)
    assert file is not None
    assert file.samefile(folder / "serve.yaml")


def test_an_absolute_file_is_taken_as_it_is(folder: Path) -> None:
    file = folder / "serve.yaml"
    assert serve_run_file(["python", "/venv/bin/serve", "run", str(file)], Path("/")) == file


@pytest.mark.parametrize(
    "command",
    [
        "python /venv/bin/serve run mpt_serve.app:build model=embedded",
        "python /venv/bin/serve run gone.yaml",
        "python /venv/bin/serve build mpt_serve.app:build",
        "python -m pytest serve.yaml",
        "python /venv/bin/serve run",
        "serve",
    ],
)
def test_other_drivers_have_no_file(folder: Path, command: str) -> None:
    assert serve_run_file(command.split(), folder) is None


def test_outside_a_cluster_there_is_no_driver() -> None:
    assert find_serve_run() is None
