"""A process makes the tokenizer's ids. Its end is the text's fault, unless it was ended from outside."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpt_serve.child_process import ChildEndedError, ChildProcess, ChildStartError
from mpt_serve.configuration.model_folder import tokenizer_folder
from mpt_serve.errors import BusyError, RequestError
from mpt_serve.text import encode_process
from mpt_serve.text.encode_process import EncodeProcess
from mpt_serve.text.tokenizer import TextTokenizer

TOKENIZER = TextTokenizer.from_folder(tokenizer_folder("embedded"))


@pytest.fixture(scope="module")
def process() -> Iterator[EncodeProcess]:
    own = EncodeProcess(TOKENIZER, niceness=1)
    yield own
    own.close()


@settings(max_examples=50)
@given(text=st.text(max_size=50), special=st.booleans())
def test_the_process_makes_the_tokenizers_ids(process: EncodeProcess, text: str, special: bool) -> None:
    assert list(process.encode(text, special)) == TOKENIZER.encode(text, special)


def test_a_text_that_takes_too_long_is_the_clients_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_process, "TIME_LIMIT_S", 0.02)
    own = EncodeProcess(TOKENIZER, niceness=0)
    with pytest.raises(RequestError, match="too long to tokenize"):
        own.encode("the cat sat " * 333_000)
    assert list(own.encode("ab")) == TOKENIZER.encode("ab")
    own.close()


def test_a_process_that_is_killed_is_replaced() -> None:
    own = EncodeProcess(TOKENIZER, niceness=0)
    own.encode("a")
    assert own._child.pid is not None
    os.kill(own._child.pid, signal.SIGKILL)
    assert list(own.encode("ab")) == TOKENIZER.encode("ab")
    own.close()


def test_the_worker_steps_back_behind_other_processes() -> None:
    own = EncodeProcess(TOKENIZER, niceness=19)
    own.encode("a")
    assert own._child.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, own._child.pid) == 19
    own.close()


@pytest.mark.parametrize(
    ("ended", "error", "message"),
    [
        (ChildEndedError(-signal.SIGPROF), RequestError, "the text takes too long to tokenize"),
        (ChildEndedError(-signal.SIGABRT), RequestError, "the text takes too much memory to tokenize"),
        (ChildEndedError(1), RequestError, "the text takes too much memory to tokenize"),
        (ChildEndedError(-signal.SIGKILL), BusyError, "was lost; retry later"),
        (ChildStartError("no memory"), BusyError, "was lost; retry later"),
    ],
    ids=str,
)
def test_an_end_from_outside_is_not_the_texts_fault(
    monkeypatch: pytest.MonkeyPatch, ended: Exception, error: type[Exception], message: str
) -> None:
    def ask(self: ChildProcess, request: Any) -> dict[str, Any]:
        raise ended

    monkeypatch.setattr(ChildProcess, "ask", ask)
    with pytest.raises(error, match=message):
        EncodeProcess(TOKENIZER, niceness=0).encode("a")
