"""`mpt-serve keys`: the keys of a file, listed, revoked, and stated again."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mpt_serve.access.api_key import SCOPES, parse_key_lines
from mpt_serve.commands.app import app
from mpt_serve.commands.keys import Scope


def keys(*arguments: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["keys", *map(str, arguments)], input=stdin)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A key file with two keys of alice and one of an operator."""
    path = tmp_path / "keys"
    for arguments in (["alice"], ["create", "alice"], ["operator", "--scope", "admin", "--tokens-per-minute", "9"]):
        assert keys(*arguments, "--file", path).exit_code == 0
    return path


def test_scopes_are_those_of_keys() -> None:
    assert tuple(Scope) == SCOPES


def test_list_shows_what_the_file_states(file: Path) -> None:
    stated = list(parse_key_lines(file.read_text(), ""))
    assert [line.split() for line in keys("list", file).output.splitlines()] == [
        [stated[0].id, "alice", "api"],
        [stated[1].id, "alice", "api"],
        [stated[2].id, "operator", "admin", "tokens_per_minute=9"],
    ]
    rows = json.loads(keys("list", file, "--json").output)
    assert [(row["id"], row["name"]) for row in rows] == [(key.id, key.name) for key in stated]
    assert (rows[2]["scopes"], rows[2]["tokens_per_minute"]) == (["admin"], 9)


def test_revoke_removes_keys_by_id_and_by_name(file: Path) -> None:
    first, second, operator = parse_key_lines(file.read_text(), "")
    result = keys("revoke", file, first.id)
    assert (result.exit_code, result.output) == (0, f"revoked {first.id}  alice\n")
    assert list(parse_key_lines(file.read_text(), "")) == [second, operator]
    assert keys("revoke", file, "alice").exit_code == 0
    assert list(parse_key_lines(file.read_text(), "")) == [operator]


def test_a_new_key_as_json(tmp_path: Path) -> None:
    made = json.loads(keys("bob", "--json", "--file", tmp_path / "keys").output)
    assert (tmp_path / "keys").read_text() == made["line"] + "\n"
    (stated,) = parse_key_lines(made["line"], "")
    assert stated.matches(made["key"])
    assert (made["id"], made["name"], made["scopes"]) == (stated.id, "bob", ["api"])


def test_what_cannot_be_revoked_or_read(file: Path, tmp_path: Path) -> None:
    before = file.read_text()
    result = keys("revoke", file, "alice", "bob")
    assert result.exit_code == 1
    assert "mpt-serve keys:" in result.output
    assert "no key has the id or the name bob" in result.output
    assert file.read_text() == before
    assert keys("list", tmp_path / "none").exit_code == 1
    (tmp_path / "bad").write_text("x")
    assert "line 1: a key has an id" in keys("list", tmp_path / "bad").output


def test_hash_states_a_key_again_with_other_options(file: Path) -> None:
    key = keys("bob", "--file", file).output.strip()
    result = keys("hash", "bob", "--scope", "admin", "--requests-per-minute", "5", stdin=f"{key}\n")
    (stated,) = parse_key_lines(result.output, "")
    assert stated.matches(key)
    assert (stated.scopes, stated.requests_per_minute) == ({"admin"}, 5)
    assert keys("hash", "bob", stdin="secret\n").exit_code == 2


def test_a_name_that_is_a_command_needs_create(tmp_path: Path) -> None:
    assert keys("create", "list", "--file", tmp_path / "keys").exit_code == 0
    assert keys("list", tmp_path / "keys").output.split()[1] == "list"
