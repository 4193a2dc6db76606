"""`docs/easydel.md`, run as it stands: EasyDeL's steps against a started server."""

import contextlib
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server import ROOT, environment, free_port

from mpt_serve.configuration.model_folder import model_path
from mpt_serve.easydel.server_config import JAXServerError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EMBEDDED = model_path("embedded")


def port_pair() -> int:
    """Return a free port whose successor is free as well."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port + 1)).close()
            return port


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the Ray that `JAXServer` starts, whose environment is that of this process."""
    folder = Path(tempfile.mkdtemp(prefix="mpt-", dir="/tmp"))
    monkeypatch.delenv("XLA_FLAGS")  # see tests/compilation.py
    for name, value in environment(folder, guarded=False).items():
        monkeypatch.setenv(name, value)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def examples() -> list[str]:
    document = (ROOT / "docs" / "easydel.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def processes_below(folder: Path) -> list[int]:
    """Return the processes whose environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def wait_until_none_runs(folder: Path) -> None:
    """Wait for Ray's processes, which end shortly after the program that started them."""
    deadline = time.monotonic() + 60
    while processes_below(folder):
        assert time.monotonic() < deadline, f"still running: {processes_below(folder)}"
        time.sleep(0.2)


def test_the_steps_of_easydels_page(
    ray_folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    load, embed, serve, use, openai, pipeline = examples()
    load = load.replace('"/models/mpt-7b-chat"', repr(EMBEDDED))
    options = f'"pre_compile": False,\n        "port": {port_pair()},'  # beside those of the page
    serve = serve.replace('"pre_compile": True,', options)
    assert (EMBEDDED in load, options in serve) == (True, True)
    names: dict[str, Any] = {}

    exec(compile(load, "docs/easydel.md", "exec"), names)
    assert names["rules"]
    of_ids = names["logits"]
    assert of_ids.shape == (1, 3, names["config"].vocab_size)
    exec(compile(embed, "docs/easydel.md", "exec"), names)
    np.testing.assert_allclose(names["logits"], of_ids, atol=1e-4)

    with caplog.at_level(logging.WARNING):
        exec(compile(serve, "docs/easydel.md", "exec"), names)
    server = names["server"]
    try:
        printed = capsys.readouterr().out
        assert "share_chat=True makes no public link" in caplog.text
        assert "share_inst=True makes no public link" in caplog.text
        assert "Peak memory" in printed
        assert printed.endswith(f"{server.api_url}/#chat {server.api_url}/#instruct\n")
        page = httpx.get(server.api_url, timeout=60)
        assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
        with pytest.raises(JAXServerError, match="runs already"):
            server.fire()

        exec(compile(use, "docs/easydel.md", "exec"), names)
        lines = capsys.readouterr().out.splitlines()
        assert "Rome" in lines[0]
        assert "Paris" in lines[1]
        assert lines[2] == "Ready"
        assert lines[3].startswith("64 ")

        response = server.forward_instruct_non_api("What is the capital of France?", None, True)
        assert response["input"] == server.format_instruct(None, "What is the capital of France?")
        assert (response["response"], response["tokens_used"] > 0) == (lines[1], True)
        assert server.status()["number_of_served_request_until_last_up_time"] == "3"
        long = "word " * 3000  # of whose tokens the last ones are used
        assert [count for _, count in server.process(long, greedy=True, max_new_tokens=64)][-1] > 0

        folder = server._folder
        exec(compile(openai, "docs/easydel.md", "exec"), names)
        assert capsys.readouterr().out.strip() == lines[1]  # the chat template is the subclass' prompt
        assert not folder.exists()
    finally:
        server.end()
    wait_until_none_runs(ray_folder)
    exec(compile(pipeline, "docs/easydel.md", "exec"), names)
    assert capsys.readouterr().out.count("generated_text") == 2
