"""`mpt-serve models` and `mpt-serve tokenize`, by a server and by files."""

import json
from pathlib import Path

import pytest
from loopback_server import Server, serving
from typer.testing import CliRunner, Result

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.api_key import new_key
from mpt_serve.commands.app import app
from mpt_serve.commands.server_url import ServerUrl
from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app


def run(*arguments: str, stdin: str = "", **environment: str) -> Result:
    return CliRunner(env={"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None, **environment}).invoke(
        app, list(arguments), input=stdin
    )


def test_models_are_listed(server: Server) -> None:
    for url in (server.url, f"{server.url}/v1", f"{server.url}/v1/", server.url.removeprefix("http://")):
        result = run("models", "--url", url)
        assert (result.exit_code, result.output) == (0, "mpt-echo  256 tokens\n")
    assert run("models", OPENAI_BASE_URL=server.url).output == "mpt-echo  256 tokens\n"
    (model,) = json.loads(run("models", "--url", server.url, "--json").output)
    assert (model["id"], model["max_model_len"]) == ("mpt-echo", 256)


def test_a_key_is_sent_and_its_lack_is_reported(server: Server, tmp_path: Path) -> None:
    key, made = new_key("alice")
    (tmp_path / "keys").write_text(made.line())
    access = AccessControl.of(AccessSettings(key_file=str(tmp_path / "keys")), Limits())
    with serving(app=create_app(server.backend, access=access)) as guarded:
        assert run("models", "--url", guarded.url, "--key", key).exit_code == 0
        assert run("models", "--url", guarded.url, OPENAI_API_KEY=key).exit_code == 0
        result = run("models", "--url", guarded.url)
        assert result.exit_code == 1
        assert "responds 401: This server requires an API key." in result.output
        assert "OPENAI_API_KEY sets it" in result.output
    assert run("models", "--url", guarded.url, "--key", "schlüssel").exit_code == 2


def test_servers_that_are_none(server: Server) -> None:
    result = run("models", "--url", f"{server.url}/other")
    assert (result.exit_code, "responds 404" in result.output) == (1, True)
    assert run("models", "--url", "http://127.0.0.1:1").exit_code == 1


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:x", "http://host/v1?a", "http://host:0"])
def test_what_is_no_url(url: str) -> None:
    result = run("models", "--url", url)
    assert result.exit_code == 2
    assert "--url must be a URL such as" in result.output


def test_urls_name_the_api_or_the_host() -> None:
    own = ServerUrl("https://host/prefix/v1/")
    assert (own.api, own.root, own.port, own.is_tls) == ("https://host/prefix/v1", "https://host/prefix", 443, True)
    other = ServerUrl("http://[::1]:80/openai")
    assert (other.api, other.root, other.host) == ("http://[::1]:80/openai", "http://[::1]:80/openai", "::1")


FILES: list[str] = ["--model", "embedded"]


def test_tokens_of_a_server(server: Server) -> None:
    url = ["--url", server.url]
    result = run("tokenize", "a b", *url)
    ids = server.backend.tokenizer.encode("a b")
    assert result.output == "".join(f"{i}\t{server.backend.tokenizer.token(i)}\n" for i in ids)
    assert run("tokenize", *url, "--ids", "--model", "mpt-echo", stdin="a b").output.split() == list(map(str, ids))
    assert run("tokenize", "a b", *url, "--count").output == "3\n"
    content = json.loads(run("tokenize", "a b", *url, "--json").output)
    assert content == {"count": 3, "tokens": ids, "token_strs": list(map(server.backend.tokenizer.token, ids))}
    assert run("tokenize", *url, "--decode", json.dumps(ids)).output == "a b\n"
    assert "The requested model does not exist" in run("tokenize", "a", *url, "--model", "x").output


def test_tokens_of_files() -> None:
    ids = run("tokenize", "Hello  world", *FILES, "--ids").output
    assert run("tokenize", *FILES, "--decode", ids).output == "Hello  world\n"
    assert run("tokenize", "Hello  world", "--count").output == f"{len(ids.split())}\n"
    assert run("tokenize", "<|im_end|>").output == "3\t<|im_end|>\n"


def test_what_cannot_be_tokenized(tmp_path: Path) -> None:
    for arguments, message in (
        (["a", "--ids", "--json"], "exclude each other"),
        (["--decode", "1 -2"], "ids must be integers"),
        (["--decode", "1728"], "ids must be below 1728"),
        (["a", "--model", str(tmp_path / "none")], "there is no folder"),
        (["a", "--model", str(tmp_path)], "no config.json"),
    ):
        result = run("tokenize", *arguments)
        assert (result.exit_code, message in result.output) == (2, True), result.output
    (tmp_path / "config.json").write_text("{}")
    assert run("tokenize", "a", "--model", str(tmp_path)).exit_code == 2
