"""The `mpt-serve` command, and what it costs to import the edge."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from server import serve_config

from mpt_serve import __version__, cli
from mpt_serve.access.api_key import parse_key_lines
from mpt_serve.access.audit_log import AuditLog
from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.proxy_limits import PROXY_LIMITS_VARIABLE, ProxyLimits
from mpt_serve.configuration.reference import settings_reference
from mpt_serve.one_loop import LOOPBACK, ONE_LOOP, PERIODS, PROXY_GUARD, replica_runtime_env

ROOT = Path(__file__).parents[2]


def test_check_says_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(ROOT / "serve_config.yaml")]) == 0
    assert capsys.readouterr().out == f"{ROOT / 'serve_config.yaml'}: valid\n"
    assert cli.main(["check", "--json", str(ROOT / "serve_config.yaml")]) == 0
    assert json.loads(capsys.readouterr().out)["valid"]


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_file_with_mistakes_fails_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text((ROOT / "serve_config.yaml").read_text().replace("      model:", "      modle:"))
    assert cli.main([command, str(file)]) == 2
    assert "unknown setting 'modle'; did you mean 'model'?" in capsys.readouterr().err


def test_a_missing_configuration_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("check", "run"):
        assert cli.main([command]) == 2
        message = capsys.readouterr().err
        assert "serve_config.yaml: 1 error\n  there is no such file; `mpt-serve docs configuration > serve" in message
    assert cli.main(["docs", "configuration"]) == 0
    (tmp_path / "serve_config.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["check"]) == 0


def test_run_hands_the_file_and_the_options_to_serve(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("serve_config.yaml", "other.yaml"):
        (tmp_path / file).write_text(yaml.safe_dump(serve_config({"model": str(tiny_checkpoint)}, 8000)))
    started: list[dict[str, object]] = []
    calls: list[list[object]] = []

    def invoke(context: click.Context) -> None:
        names = "config_or_import_path", "app_dir", "blocking", "reload"
        calls.append([context.params[name] for name in names])
        raise SystemExit(3)

    monkeypatch.setattr("mpt_serve.serve_run.serve_run.invoke", invoke)
    monkeypatch.setattr("ray.init", lambda **options: started.append(options))
    monkeypatch.setattr("sys.path", sys.path.copy())
    monkeypatch.setattr("mpt_serve.commands.run._require_startable", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    for name in (*ONE_LOOP, *PROXY_GUARD, *PERIODS, *LOOPBACK, PROXY_LIMITS_VARIABLE):
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)
    for arguments in ([], ["--address", "auto"], ["other.yaml", "--app-dir", "x"], ["other.yaml", "-r"]):
        assert cli.main(["run", *arguments]) == 3
    assert ProxyLimits.from_environment() == ProxyLimits(bodies=Limits(), max_running=256)
    assert os.environ.items() >= {**ONE_LOOP, **PROXY_GUARD, **PERIODS}.items()
    assert [options["address"] for options in started] == [None, "auto", None, None]
    assert {options["namespace"] for options in started} == {"serve"}
    assert calls == [
        ["serve_config.yaml", ".", False, False],  # without Serve's own loop, which does not end when the start fails
        ["serve_config.yaml", ".", False, False],
        ["other.yaml", "x", False, False],
        ["other.yaml", ".", True, True],
    ]


@pytest.mark.parametrize("cluster", ["none", "--address", "RAY_ADDRESS", "started"])
def test_run_without_a_cluster_listens_on_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    monkeypatch.setattr("mpt_serve.commands.run._require_startable", lambda *_: None)
    monkeypatch.setattr("mpt_serve.serve_run.run_file", lambda *_: 0)
    (tmp_path / "serve_config.yaml").write_text("applications: []")
    monkeypatch.chdir(tmp_path)
    for name in (*ONE_LOOP, *PROXY_GUARD, *PERIODS, *LOOPBACK, PROXY_LIMITS_VARIABLE, "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if cluster == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", "auto")
    elif cluster == "started":
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("192.0.2.1:6379")
    assert cli.main(["run", *(["--address", "auto"] if cluster == "--address" else [])]) == 0
    assert (LOOPBACK.items() <= os.environ.items()) == (cluster == "none")


def test_keys_makes_a_key_and_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "alice", "--scope", "admin", "--scope", "api", "--tokens-per-minute", "9"]) == 0
    key, line = (text.split(":", 1)[1].strip() for text in capsys.readouterr().out.splitlines())
    (made,) = parse_key_lines(line, "")
    assert made.matches(key)
    assert (made.name, made.scopes, made.tokens_per_minute) == ("alice", {"api", "admin"}, 9)
    file = tmp_path / "keys"
    keys = []
    for _ in range(2):
        assert cli.main(["keys", "bob", "--requests-per-minute", "60", "--file", str(file)]) == 0
        keys.append(capsys.readouterr().out.strip())
    stated = list(parse_key_lines(file.read_text(), ""))
    assert [key.matches(text) for key, text in zip(stated, keys, strict=True)] == [True, True]


def test_keys_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "two words"]) == 2
    assert "the name must have" in capsys.readouterr().err
    assert cli.main(["keys", "alice", "--file", str(tmp_path)]) == 1
    assert "the line was not written" in capsys.readouterr().err
    for arguments in (["--scope", "root"], ["--tokens-per-minute", "0"]):
        assert cli.main(["keys", "alice", *arguments]) == 2


def test_audit_checks_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = AuditLog(tmp_path / "a.jsonl")
    for _ in range(3):
        log.write({})
    log.close()
    file = tmp_path / "a.jsonl"
    last = hashlib.sha256(file.read_bytes().splitlines()[-1]).hexdigest()
    assert cli.main(["audit", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 3 records, unbroken; last {last}\n"
    assert cli.main(["audit", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"file": str(file), "records": 3, "digest": last}]
    (tmp_path / "a.jsonl").write_text("{}")
    for name in ("a.jsonl", "none"):
        assert cli.main(["audit", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err


def test_docs_prints_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docs", "settings"]) == 0
    assert capsys.readouterr().out == settings_reference()


def test_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mpt-serve {__version__}\n"
    assert cli.main(["serv"]) == 2
    assert "No such command 'serv'" in capsys.readouterr().err
    assert cli.main([]) == 2


@pytest.mark.parametrize(
    "module", ["mpt_serve.app", "mpt_serve.deployments.ingress", "mpt_serve.deployments.tokenizer"]
)
def test_the_edge_starts_without_the_heavy_libraries(module: str) -> None:
    """JAX takes seconds to import, and every replica of the edge and the builder would pay for it."""
    heavy = ("jax", "flax", "transformers", "huggingface_hub")
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-W", "ignore", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout == "[]\n"


def test_replicas_get_the_environment_unless_their_nodes_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ONE_LOOP:
        monkeypatch.setenv(name, "1")
    assert replica_runtime_env() == {"runtime_env": {"env_vars": ONE_LOOP}}
    for name, value in ONE_LOOP.items():
        monkeypatch.setenv(name, value)
    assert replica_runtime_env() == {}
