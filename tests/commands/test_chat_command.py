"""`mpt-serve chat`: in a pipe, and in a terminal, over a real HTTP server."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fake_backend import FakeBackend
from loopback_server import Server
from typer.testing import CliRunner, Result
from waiting import PATIENCE_S, attempts

from mpt_serve.commands.app import app
from mpt_serve.commands.conversation import Reply

ROOT = Path(__file__).parents[2]


def chat(server: Server, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["chat", "--url", server.url, *arguments], input=stdin)


def contents(backend: FakeBackend, conversation: int = -1) -> list[tuple[str, str]]:
    messages, _ = backend.conversations[conversation]
    return [(str(message["role"]), str(message["content"])) for message in messages]


def test_a_message_in_a_pipe_or_as_an_argument(server: Server) -> None:
    for result in (chat(server, stdin="hi\n"), chat(server, "hi")):
        assert (result.exit_code, result.stdout, result.stderr) == (0, "[user]hi[assistant]\n", "")
    assert contents(server.backend) == [("user", "hi")]


def test_options_are_fields_of_the_request(server: Server) -> None:
    options = ["--max-tokens", "3", "--temperature", "0", "--top-p", "0.5", "--seed", "7", "--stop", "zz", "-s", "Be."]
    assert chat(server, "hi", "-m", "mpt-echo", *options, "--set", "top_k=5").stdout == "[sy\n"
    _, params = server.backend.started[-1]
    assert (params.max_tokens, params.temperature, params.top_k, params.seed) == (3, 0, 5, 7)
    assert contents(server.backend) == [("system", "Be."), ("user", "hi")]
    assert chat(server, "hi", "--set", "stop=user").stdout == "[\n"  # what is no JSON is a text


def test_figures_as_json(server: Server) -> None:
    reply = json.loads(chat(server, "hi", "--json", "--max-tokens", "4").stdout)
    assert reply["content"] == "[use"
    assert (reply["finish_reason"], reply["completion_tokens"], reply["prompt_tokens"]) == ("length", 4, 19)
    assert reply["ttft_s"] > 0


def test_what_the_server_refuses_is_reported(server: Server) -> None:
    result = chat(server, "hi", "--set", "temperature=9")
    assert result.exit_code == 1
    assert "mpt-serve chat:" in result.stderr
    assert "temperature" in result.stderr
    server.backend.fail_after = 2
    result = chat(server, "hi")
    assert (result.exit_code, result.stdout) == (1, "[u")
    assert "the server ended its response" in result.stderr


def test_fields_that_the_server_ignores_are_named(server: Server) -> None:
    result = chat(server, "hi", "--set", "no_such=1")
    assert (result.exit_code, result.stdout) == (0, "[user]hi[assistant]\n")
    assert result.stderr.startswith("note: http")
    assert result.stderr.endswith(" ignores no_such\n")


def test_wrong_arguments(server: Server) -> None:
    for arguments, message in ((["--set", "x"], "--set must have the form"), ([], "there is no message")):
        result = chat(server, *arguments)
        assert (result.exit_code, message in result.stderr) == (2, True)


class Terminal:
    """The program in a terminal: what is typed goes in, and what is shown is kept."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mpt_serve", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until a text is shown, and forget everything up to it."""
        assert self._shows(text, PATIENCE_S), f"not shown: {text!r} in {self.shown!r}"
        self.shown = self.shown.partition(text)[2]

    def _shows(self, text: str, within_s: float) -> bool:
        give_up = time.monotonic() + within_s
        while text not in self.shown:
            ready, _, _ = select.select([self._own], [], [], max(0, give_up - time.monotonic()))
            if not ready:
                return False
            self.shown += os.read(self._own, 4096).decode()
        return True

    def interrupt_at_the_prompt(self, response: str) -> None:
        """Send what Ctrl-C sends while the program waits for a line, until it shows its response to that.

        Python's `input` does not notice a signal between the moment it shows the prompt and the moment it waits.
        """
        self.wait_for("> ")
        for _ in attempts(f"not shown: {response!r} in {self.shown!r}", 60):
            self.process.send_signal(signal.SIGINT)
            if self._shows(response, within_s=1):
                break

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._own)


@pytest.fixture
def terminal(server: Server) -> Iterator[Terminal]:
    running = Terminal(["chat", "--url", server.url])
    try:
        running.wait_for("> ")
        yield running
    finally:
        running.close()


def test_a_conversation_in_a_terminal(server: Server, terminal: Terminal) -> None:
    backend = server.backend
    backend.outputs = [backend.tokenizer.encode("Hello\x1b[2J!")]
    terminal.type("one\n")
    terminal.wait_for("Hello[2J!")  # the terminal does not obey the model
    terminal.wait_for("tokens/s, TTFT ")
    terminal.wait_for("> ")
    terminal.type("two\\\nlines\n")
    terminal.wait_for("Hello[2J!")
    assert contents(backend) == [("user", "one"), ("assistant", "Hello\x1b[2J!"), ("user", "two\nlines")]
    for command, conversation in (
        ("/retry", [("user", "one"), ("assistant", "Hello\x1b[2J!"), ("user", "two\nlines")]),
        ("/system Be brief.", None),
        ("three", [("system", "Be brief."), ("user", "three")]),
        ("/reset", None),
        ("four", [("system", "Be brief."), ("user", "four")]),
    ):
        terminal.wait_for("> ")
        terminal.type(f"{command}\n")
        if conversation is not None:
            terminal.wait_for("Hello[2J!")
            assert contents(backend) == conversation
    terminal.wait_for("> ")
    terminal.type("/what\n")
    terminal.wait_for("/what is no command.")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(PATIENCE_S) == 0


def test_ctrl_c_stops_the_reply_and_not_the_program(server: Server, terminal: Terminal) -> None:
    server.backend.hang_after = 8
    terminal.type("one\n")
    terminal.wait_for("[user]")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("stopped")
    Server.wait_until(lambda: len(server.backend.cancelled) == 1)
    terminal.wait_for("> ")
    server.backend.hang_after = None
    terminal.type("two\n")
    terminal.wait_for("[assistant]")
    assert contents(server.backend)[0] == ("user", "one")
    assert contents(server.backend)[1][1].startswith("[user]")
    terminal.interrupt_at_the_prompt("Ctrl-D ends.")
    terminal.type("/exit\n")
    assert terminal.process.wait(PATIENCE_S) == 0


def test_a_refusal_ends_neither_the_program_nor_the_conversation(server: Server, terminal: Terminal) -> None:
    terminal.type("x" * 300 + "\n")
    terminal.wait_for("maximum context length")
    terminal.wait_for("> ")
    terminal.type("one\n")
    terminal.wait_for("[user]one[assistant]")
    assert contents(server.backend) == [("user", "one")]


@pytest.mark.parametrize(
    ("tokens", "ttft_s", "seconds", "rate"),
    [(101, 0.5, 2.0, 50.0), (11, 0.08, 0.02, 110.0), (8, 0.1, 0.0, 80.0), (1, 0.1, 0.0, None), (0, None, 0.0, None)],
)
def test_the_rate_of_a_reply_is_never_that_of_tokens_that_came_together(
    tokens: int, ttft_s: float | None, seconds: float, rate: float | None
) -> None:
    assert Reply(tokens=tokens, ttft_s=ttft_s, seconds=seconds).tokens_per_s() == pytest.approx(rate)
