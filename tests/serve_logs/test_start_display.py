"""What `mpt-serve run` shows of a start: the lines that a Generator really logs, and what is made of them."""

import io
import logging
import threading
from pathlib import Path

import pytest
from rich.console import Console

from model.checkpoint import digest, load_progress
from mpt_serve.engine import Engine, EngineConfig, programs
from mpt_serve.engine.programs import Programs
from mpt_serve.serve_logs.log_files import LogFiles
from mpt_serve.serve_logs.start_progress import StartProgress
from mpt_serve.start_display import StartDisplay, addresses_of


def test_the_lines_of_an_engine_are_understood(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = EngineConfig(num_blocks=8, block_size=16, max_model_len=64, pre_compile=False)
    with caplog.at_level(logging.INFO):
        Engine.from_pretrained(tiny_checkpoint, settings).close()
    progress = StartProgress()
    for logged in caplog.records:
        progress.take(logged.getMessage())
    assert (progress.cache_tokens, progress.context) == (128, 64)
    assert "KV cache 128 tokens (" in progress.summary()
    assert progress.summary().endswith("context 64 tokens")


class Lowered:
    """Stands in for a program that is compiled when all are `wanted`."""

    def __init__(self, wanted: threading.Event) -> None:
        self._wanted = wanted

    def compile(self) -> "Lowered":
        assert self._wanted.wait(60)
        return self


def test_programs_are_counted_while_they_are_compiled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the two programs that every engine has takes until the other one has been reported."""
    reported = threading.Event()
    at_once = threading.Event()
    at_once.set()

    def lower(_: Programs, purpose: str, *__: object) -> Lowered:
        return Lowered(at_once if purpose == "copy" else reported)

    class Reporter(logging.Handler):
        def emit(self, logged: logging.LogRecord) -> None:
            if logged.getMessage() == "programs: 1 of 2 compiled":
                reported.set()

    monkeypatch.setattr(programs, "_LOG_PERIOD_S", 0.01)
    monkeypatch.setattr(Programs, "_lower", lower)
    own = Programs.__new__(Programs)
    own._shapes, own._fused, own._stored = {}, [], False
    reporter = Reporter()
    programs.logger.addHandler(reporter)
    with caplog.at_level(logging.INFO):
        own.compile_all(state=None)  # type: ignore[arg-type]
    programs.logger.removeHandler(reporter)
    progress, seen = StartProgress(), []
    for logged in caplog.records:
        progress.take(logged.getMessage())
        seen.append((progress.compiled, progress.programs))
    assert seen == sorted(seen)
    assert (1, 2) in seen
    assert seen[-1] == (2, 2)
    assert "2 programs compiled in " in progress.summary()


def test_weights_are_counted_while_they_are_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_progress, "_PERIOD_S", 0.0)
    with caplog.at_level(logging.INFO), load_progress.LoadProgress(10 * 2**20, progress=False) as bar:
        for _ in range(2):
            bar.update(4 * 2**20)
    progress = StartProgress()
    for logged in caplog.records:
        progress.take(logged.getMessage())
    assert (progress.loaded, progress.weights) == (8, 10)
    progress.take("weights: 10 MiB")
    assert (progress.loaded, progress.summary()) == (10, "weights 10 MiB")


def test_the_first_reading_of_a_checkpoint_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as long as the disk needs for all files, before anything is loaded."""
    monkeypatch.setattr(load_progress, "_PERIOD_S", 0.0)
    monkeypatch.setattr(digest, "_PIECE_BYTES", 2**20)
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(bytes(3 * 2**20 + 1))
    with caplog.at_level(logging.INFO):
        first = digest.content_digest(files, "mark", tmp_path / "memory")
    progress = StartProgress()
    for logged in caplog.records:
        progress.take(logged.getMessage())
    assert (progress.read, progress.checkpoint) == (6, 7)
    caplog.clear()
    assert digest.content_digest(files, "mark", tmp_path / "memory") == first
    assert not caplog.records


def test_addresses() -> None:
    config = {
        "http_options": {"host": "0.0.0.0", "port": 9},
        "applications": [{"route_prefix": "/"}, {"route_prefix": "/b"}],
    }
    assert addresses_of(config) == ["http://127.0.0.1:9", "http://127.0.0.1:9/b"]
    assert addresses_of({"applications": [{}]}) == ["http://127.0.0.1:8000"]
    assert addresses_of({"http_options": {"host": "::1"}, "applications": [{}]}) == ["http://[::1]:8000"]


GENERATOR = "INFO 2026-11-28 17:00:0{},000 mpt_Generator aaaa -- {}\n"
READY = "INFO 2026-11-28 17:00:09,000 mpt_Ingress bbbb -- Ready: the Generator replies.\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_start_on_a_terminal_and_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    file = tmp_path / "replica_mpt_Generator_aaaa.log"
    file.write_text(GENERATOR.format(0, "weights: 7 MiB"))  # of an earlier start
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100)
    display = StartDisplay(LogFiles(tmp_path), ["http://host:1"], console)
    with file.open("a") as log:
        log.write(GENERATOR.format(1, "Reading the checkpoint: 20 of 30 MiB"))
        log.write(GENERATOR.format(1, "weights: 500 of 1000 MiB read"))
        log.write(GENERATOR.format(2, "programs: 3 of 46 compiled"))
        log.write(
            GENERATOR.format(
                3, "KV cache: 64 tokens in 4 blocks of 16 (2 MiB); 1.0x concurrency for requests of 32 tokens"
            )
        )
    assert not display.advance()
    (tmp_path / "replica_mpt_Ingress_bbbb.log").write_text(READY)
    display.run(threading.Event())
    assert ("Reading the checkpoint" in shown.getvalue() and "20/30" in shown.getvalue()) == terminal
    assert ("Loading weights" in shown.getvalue() and " 500/1000" in shown.getvalue()) == terminal
    assert ("Compiling" in shown.getvalue() and "3/46" in shown.getvalue()) == terminal
    line, *more = capsys.readouterr().out.splitlines()
    assert line.startswith("mpt-serve: ready after ")
    assert "s at http://host:1 (weights 1000 MiB, KV cache 64 tokens (2 MiB), context 32 tokens, 46 programs" in line
    assert bool(more) == terminal


def test_a_start_that_ends_early_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = threading.Event()
    ended.set()
    StartDisplay(LogFiles(tmp_path), ["http://host:1"]).run(ended)
    assert capsys.readouterr().out == ""
