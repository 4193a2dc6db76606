"""The encode worker's own logic, run here without its limits on memory and time, which would bind the tests."""

import base64
import io
import json
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from toy_tokenizers import byte_level_tokenizer

from mpt_serve.text import encode_worker
from mpt_serve.text.tokenizer import TextTokenizer


def test_each_text_is_encoded_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[Any, ...]] = []
    monkeypatch.setattr(encode_worker.os, "nice", lambda *arguments: limits.append(arguments))
    monkeypatch.setattr(encode_worker.resource, "setrlimit", lambda *arguments: limits.append(arguments))
    monkeypatch.setattr(encode_worker.signal, "setitimer", lambda *arguments: limits.append(arguments))
    tokenizer = TextTokenizer(byte_level_tokenizer())
    setup = {"tokenizer": tokenizer.serialized, "niceness": 5, "memory": 7, "seconds": 3}
    texts = [{"text": "a<|endoftext|>é"}, {"text": "b", "add_special_tokens": False}]
    lines = "".join(json.dumps(line) + "\n" for line in (setup, *texts))
    output = io.BytesIO()
    monkeypatch.setattr(encode_worker.sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines.encode())))
    monkeypatch.setattr(encode_worker.sys, "stdout", SimpleNamespace(buffer=output))
    encode_worker.main()
    ready, *replies = [json.loads(line) for line in output.getvalue().splitlines()]
    assert ready == {}
    found = [array("i", base64.b64decode(reply["ids"])).tolist() for reply in replies]
    assert found == [tokenizer.encode("a<|endoftext|>é"), tokenizer.encode("b")]
    timer = encode_worker.signal.ITIMER_PROF
    assert limits == [(5,), (encode_worker.resource.RLIMIT_AS, (7, 7)), *[(timer, 3), (timer, 0)] * 2]
