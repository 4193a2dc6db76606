"""Keys, and the lines that state them."""

from pathlib import Path

import pytest

from mpt_serve.access.api_key import ApiKey, KeyLineError, append_line, key_id, new_key, parse_key_lines


def parsed(text: str) -> list[ApiKey]:
    return list(parse_key_lines(text, "keys"))


def test_a_new_keys_line_states_it_without_containing_it() -> None:
    key, made = new_key("alice", ["admin", "api"], requests_per_minute=60, tokens_per_minute=9000)
    line = made.line()
    assert parsed(f"# a comment\n\n  {line}\n") == [made]
    assert made.matches(key)
    assert not made.matches(key[:-1] + ("0" if key[-1] != "0" else "1"))
    assert key_id(key) == made.id
    assert key.removeprefix(f"sk-mpt-{made.id}-") not in line
    assert line.split()[1:3] == ["alice", "api,admin"]
    assert line.endswith(" requests_per_minute=60 tokens_per_minute=9000")


def test_keys_differ() -> None:
    (first, a), (second, b) = new_key("a"), new_key("a")
    assert first != second
    assert (a.id, a.salt) != (b.id, b.salt)
    assert not a.matches(second)


@pytest.mark.parametrize("key", ["", "sk-mpt-", "sk-mpt-00-11", "Bearer x", "sk-mpt-" + "0" * 12 + "-" + "é" * 64])
def test_what_has_not_the_form_of_a_key_has_no_id(key: str) -> None:
    assert key_id(key) is None


@pytest.mark.parametrize(("name", "scopes"), [("", ["api"]), ("a b", ["api"]), ("a", []), ("a", ["root"])])
def test_names_and_scopes_that_a_line_cannot_hold(name: str, scopes: list[str]) -> None:
    with pytest.raises(ValueError, match="must"):
        new_key(name, scopes)


LINE = ["0123456789ab", "alice", "api", f"scrypt:16384:8:1:{'a' * 32}:{'b' * 64}"]


@pytest.mark.parametrize(
    ("position", "field", "message"),
    [
        (0, "0123", "the id must"),
        (1, "al/ice", "the name must"),
        (2, "api,root", "the scopes must be some of api, admin"),
        (3, "scrypt:16384:8:1", "the hash must have the form"),
        (3, f"scrypt:16384:8:1:{'a' * 33}:{'b' * 64}", "even number"),
        (3, f"scrypt:1024:8:1:{'a' * 32}:{'b' * 64}", "power of two from 16384"),
        (3, f"scrypt:16385:8:1:{'a' * 32}:{'b' * 64}", "power of two"),
        (3, f"scrypt:1048576:8:1:{'a' * 32}:{'b' * 64}", "256 MiB"),
        (3, f"scrypt:16384:8:17:{'a' * 32}:{'b' * 64}", "P at most 16"),
        (4, "request_per_minute=1", "an option must be one of requests_per_minute, tokens_per_minute"),
        (4, "requests_per_minute=0", "requests_per_minute must be an integer"),
        (4, "tokens_per_minute=1e3", "tokens_per_minute must be an integer"),
        (4, "tokens_per_minute=", "tokens_per_minute must be an integer"),
    ],
)
def test_mistakes_are_named_with_their_line_and_nothing_of_it(position: int, field: str, message: str) -> None:
    line = " ".join([*LINE[:position], field, *LINE[position + 1 :]])
    with pytest.raises(KeyLineError, match=message) as error:
        parsed(f"\n{line}\n")
    assert str(error.value).startswith("keys, line 2: ")
    assert field not in str(error.value)


def test_a_line_without_a_hash() -> None:
    with pytest.raises(KeyLineError, match="line 1: a key has an id, a name, scopes and a hash"):
        parsed("sk-mpt-secret")


def test_lines_are_appended_to_a_file_of_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    made = [new_key(name)[1] for name in ("a", "b", "c")]
    for key in made[:2]:
        append_line(file, key)
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text().rstrip("\n"))  # as an editor may leave it
    append_line(file, made[2])
    assert parsed(file.read_text()) == made
