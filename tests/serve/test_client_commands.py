"""`mpt-serve models`, `tokenize`, `chat` and `bench` against a started server."""

import json

import pytest
from typer.testing import CliRunner

from mpt_serve.commands.app import app

pytestmark = pytest.mark.slow


def output(server_url: str, command: str, *arguments: str) -> str:
    result = CliRunner().invoke(app, [command, "--url", server_url, *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_models_and_tokens(server_url: str) -> None:
    assert [model["id"] for model in json.loads(output(server_url, "models", "--json"))] == ["tiny"]
    ids = json.loads(output(server_url, "tokenize", "Hello, world", "--no-special", "--json"))["tokens"]
    assert output(server_url, "tokenize", "--decode", " ".join(map(str, ids))) == "Hello, world\n"


def test_a_reply_is_the_same_in_both_forms(server_url: str) -> None:
    options = ["Hello", "--max-tokens", "8", "--temperature", "0"]
    reply = json.loads(output(server_url, "chat", *options, "--json"))
    assert reply["completion_tokens"] == 8
    assert output(server_url, "chat", *options) == reply["content"] + "\n"


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_load_test_counts_every_token(server_url: str, api: str) -> None:
    lengths = ["--prompt-tokens", "180-220", "--output-tokens", "6", "--ignore-eos"]
    found = json.loads(output(server_url, "bench", "--api", api, "-n", "12", "-c", "4", *lengths, "--json", "-"))
    assert (found["finished"], found["failed"], found["output_tokens"]) == (12, 0, 72)
    assert found["tokens_are_counted"]
    assert 12 * 150 < found["prompt_tokens"] < 12 * 250
