"""Keys and limits as settings state them."""

from pathlib import Path

import pytest

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.api_key import new_key
from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.configuration.problems import ConfigurationError

_, KEY = new_key("alice")


def test_without_a_source_of_keys_none_is_required() -> None:
    assert AccessControl.of(AccessSettings(requests_per_minute=1), Limits()) is None


def test_limits_of_one_client(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY.line())
    settings = AccessSettings(key_file=str(file), requests_per_minute=9, tokens_per_minute=8, max_share=0.5)
    access = AccessControl.of(settings, Limits(max_waiting_requests=10, max_waiting_prompt_tokens=1))
    assert access is not None
    limits = access.clients.owner(KEY).limits
    assert (limits.requests_per_minute, limits.tokens_per_minute) == (9, 8)
    assert (limits.max_choices, limits.max_prompt_tokens) == (5, 1)


def test_what_cannot_be_read_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"access\.key_file: cannot be read \(FileNotFoundError\)"):
        AccessControl.of(AccessSettings(key_file=str(tmp_path / "none")), Limits())
    (tmp_path / "keys").write_text("x")
    with pytest.raises(ConfigurationError, match="line 1: a key has an id"):
        AccessControl.of(AccessSettings(key_file=str(tmp_path / "keys")), Limits())
    with pytest.raises(ConfigurationError, match="'NO_SUCH_VARIABLE'"):
        AccessControl.of(AccessSettings(key_variable="NO_SUCH_VARIABLE"), Limits())


@pytest.mark.parametrize("setting", ["key_file", "audit_log_dir"])
def test_paths_are_absolute(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{setting} must be an absolute path"):
        AccessSettings(**{setting: "keys"})
    assert getattr(AccessSettings(**{setting: "~/keys"}), setting) == "~/keys"


@pytest.mark.parametrize("origin", ["chat.example.com", "https://a/b", "null", "ftp://a", "https://", "https://u@a"])
def test_origins_are_checked(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="must hold origins such as"):
        AccessSettings(cors_origins=["http://localhost:3000", origin])
