"""`mpt-serve chat`: a conversation in the terminal, or one reply in a pipe."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.fields import parse_fields
from mpt_serve.commands.options import DEFAULT_URL, Fields, Key, ServedModel, Url

if TYPE_CHECKING:
    from mpt_serve.commands.conversation import Conversation, Reply

__all__ = ["chat"]

_HELP = """\
/reset          forget the conversation
/system [TEXT]  set the system prompt, or remove it; the conversation is forgotten
/retry          ask the last message again
/exit           end, as Ctrl-D does
Ctrl-C stops a reply. A line that ends with \\ goes on in the next one."""


def chat(
    message: Annotated[str | None, typer.Argument(help="say this, print the reply, and end")] = None,
    url: Url = DEFAULT_URL,
    model: ServedModel = None,
    key: Key = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="the system prompt")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="of a reply, at most")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 for the likeliest tokens")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="the probability mass to sample from")] = None,
    seed: Annotated[int | None, typer.Option(help="the same reply again, where the server has seeds")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="end before this text; may be repeated")] = None,
    fields: Fields = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one line of JSON for each reply, with its figures, when it has ended")
    ] = False,
) -> None:
    """Talk to a chat model of any OpenAI-style server.

    Replies are streamed; tokens per second and the time to the first token (TTFT) follow each. Without a terminal as
    input, all of stdin is one message: `echo Hi | mpt-serve chat`.
    """
    from mpt_serve.commands.conversation import Conversation
    from mpt_serve.commands.server_client import ServerClient

    named = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "stop": stop}
    options = {name: value for name, value in named.items() if value is not None} | parse_fields(fields or ())
    with ServerClient(url, key) as client:
        conversation = Conversation(client, model or client.first_model(), system, options)
        talk = _Talk(conversation, as_json)
        if message is not None or not sys.stdin.isatty():
            talk.say_once(sys.stdin.read() if message is None else message)
        else:
            _require_line_editing()
            talk.run(input)


class _Talk:
    """A conversation's replies on stdout, and everything else on stderr."""

    def __init__(self, conversation: "Conversation", as_json: bool) -> None:
        self._conversation = conversation
        self._as_json = as_json

    def say_once(self, text: str) -> None:
        """Print one reply; the exit status after Ctrl-C is 130."""
        text = text.removesuffix("\n")
        if not text.strip():
            raise CommandError("there is no message: give one as an argument, or on stdin", status=2)
        reply = self._say(text)
        if reply.finish_reason is None:
            raise typer.Exit(130)

    def run(self, read_line: Callable[[str], str]) -> None:
        """Talk until the input ends. read_line: returns a line to a prompt, as `input` does."""
        _note(f"{self._conversation.model} at {self._conversation.client.url}. /help shows the commands; Ctrl-D ends.")
        while True:
            try:
                if not self._obey(_read_message(read_line)):
                    return
            except EOFError:
                _note("")
                return
            except KeyboardInterrupt:
                _note("\nCtrl-D ends.")
            except CommandError as error:
                _note(str(error))

    def _obey(self, line: str) -> bool:
        """Do what a line says, and return whether to go on."""
        word, _, rest = line.strip().partition(" ")
        if word == "/exit":
            return False
        if word == "/help":
            _note(_HELP)
        elif word in ("/reset", "/system"):
            self._conversation.turns.clear()
            if word == "/system":
                self._conversation.system = rest.strip() or None
        elif word == "/retry":
            message = self._conversation.take_back()
            if message is None:
                _note("There is no message to ask again.")
            else:
                self._say(message)
        elif word.startswith("/") and "/" not in word[1:]:
            _note(f"{word} is no command.\n{_HELP}")
        elif word:
            self._say(line)
        return True

    def _say(self, text: str) -> "Reply":
        visible = _for_terminal if sys.stdout.isatty() else str
        write: Callable[[str], None] = (
            (lambda _: None) if self._as_json else (lambda piece: _print_piece(visible(piece)))
        )
        reply = self._conversation.send(text, write)
        if self._as_json:
            print(json.dumps(reply.as_json(), ensure_ascii=False), flush=True)
            return reply
        print(flush=True)
        if sys.stderr.isatty():
            print(f"\x1b[2m{reply.summary()}\x1b[0m", file=sys.stderr)
        return reply


def _read_message(read_line: Callable[[str], str]) -> str:
    lines = [read_line("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(read_line(". "))
    return "\n".join(lines)


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _for_terminal(text: str) -> str:
    """Return a text without the control characters that would direct the terminal."""
    return "".join(char for char in text if char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160))


def _require_line_editing() -> None:
    """Let `input` edit lines and recall earlier ones, where Python has that."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
