"""The comparison with other engines (benchmarks/): the ids that each generates stand beside its speed."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from source_tree import ROOT

CHECKPOINT = "M"
REFERENCE = [[7, 8, 9, 10], [1, 2, 3, 4]]
ENGINE = """
import sys
sys.path.insert(0, {benchmarks!r})
from harness import Contender, Generation, Session, argument_parser

def generate(prompts, new):
    return Generation(0.5, 1.0, [[row[0] + place for place in range(new - {missing})] for row in prompts])

session = Session("engine", argument_parser(None, ("f32",), default="f32"))
assert session.max_tokens == 216  # of the fixed prompt, longer than the shapes
session.measure(Contender(generate, version="1", weight_bytes=4))
"""


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    loaded = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield
    for name in set(sys.modules) - loaded:  # their short names could be those of other modules
        path = getattr(sys.modules[name], "__file__", None)
        if path and Path(path).is_relative_to(ROOT / "benchmarks"):
            del sys.modules[name]


def run(contender: str, ids: list[list[int]] | None, **more: Any) -> dict[str, Any]:
    """Return a line of results.jsonl."""
    line = {"ckpt": CHECKPOINT, "match": "int8", "contenders": ["ours:int8", "right:int8", "wrong:int8"]}
    line |= {"contender": contender, "round": 1, "batch": 1, "prompt": 32, "new": 64, "decode_tok_s": 50.0}
    line |= {"share": 0.5, "bound": "memory", "rss_mb": 100.0, "weight_bytes": 10**6, "version": "1", "load_s": 2}
    return line | ({} if ids is None else {"first_ids": ids}) | more


def reference() -> dict[str, Any]:
    return {"ckpt": CHECKPOINT, "contender": "ours:f32", "reference_ids": REFERENCE}


def results_of(right: list[list[int]], wrong: list[list[int]]) -> list[dict[str, Any]]:
    return [reference(), run("ours:int8", REFERENCE), run("right:int8", right), run("wrong:int8", wrong)]


def rows(table: str, name: str) -> list[list[str]]:
    """Return the cells of the lines in which a cell begins with `name`."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [line for line in lines if any(cell.startswith(name) for cell in line)]


def test_the_table_counts_the_ids_that_are_the_references() -> None:
    from report import table

    results = results_of(right=[[7, 8, 0, 10], [0, 2, 3, 4]], wrong=[[0, 8, 9, 10], [0, 0, 0, 0]])
    text = table(results)
    assert rows(text, "contender")[0][-1] == "first equal ids"
    assert rows(text, "ours:int8")[0][-1] == "4, 4 of 4"
    assert rows(text, "right:int8")[0][-1] == "2, 0 of 4"  # ids that are equal again later do not count
    assert rows(text, "wrong:int8")[0][-1] == "0, 0 of 4: other output"


def test_other_output_is_marked_beside_its_speed() -> None:
    from report import table

    results = results_of(right=[[0, 0, 0, 0], [1, 0, 0, 0]], wrong=[[0, 8, 9, 10], [0, 0, 0, 0]])
    header = rows(table(results), "`ours:int8`")[0]
    assert header[1:] == ["`ours:int8`", "`right:int8`", "ratio", "`wrong:int8` †", "ratio"]
    assert "† Other output" in table(results)
    assert "†" not in table(results[:3])


@pytest.mark.parametrize("lines", [[run("ours:int8", REFERENCE)], [reference(), run("ours:int8", None)]])
def test_results_without_a_reference_or_ids_are_not_judged(lines: list[dict[str, Any]]) -> None:
    from report import table

    assert rows(table(lines), "ours:int8")[0][-1] == "-"
    assert "†" not in table(lines)


def start(folder: Path, missing: int = 0) -> Any:
    from worker import Worker

    script = folder / "engine.py"
    script.write_text(ENGINE.format(benchmarks=str(ROOT / "benchmarks"), missing=missing))
    return Worker([sys.executable, script, folder, "1:8:4", "--threads", "1"], folder / "log", 60)


def test_a_worker_continues_the_same_prompts_as_every_other(tmp_path: Path) -> None:
    from harness import FIXED, Shape, make_prompts

    worker = start(tmp_path)
    try:
        firsts = [prompt[0] for prompt in make_prompts(FIXED, 0, 50_000)]
        assert worker.ready["first_ids"] == [list(range(first, first + 16)) for first in firsts]
        assert worker.ask(Shape(1, 8, 4), 1, 60)["first_ids"] == worker.ready["first_ids"]
    finally:
        worker.close()


def test_an_engine_that_generates_too_few_ids_is_not_ready(tmp_path: Path) -> None:
    from worker import WorkerError

    with pytest.raises(WorkerError, match="ended with status 1"):
        start(tmp_path, missing=1)
    assert "rows of [15] tokens were generated instead of 1 of 16" in (tmp_path / "log").read_text()


def test_the_reference_is_computed_once_per_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compare

    started: list[list[Any]] = []

    class Started:
        def __init__(self, command: list[Any], log: Path, load_seconds: float) -> None:
            self.ready = {"first_ids": REFERENCE}
            started.append(command)

        def close(self) -> None:
            pass

    monkeypatch.setattr(compare, "Worker", Started)
    options = argparse.Namespace(
        out=tmp_path, shapes=["1:8:4"], threads=2, work=tmp_path, engine_options="", load_seconds=1
    )
    for checkpoint in ("M", "M", "L"):
        assert compare.reference_ids(tmp_path / checkpoint, options) == REFERENCE
    assert [Path(command[2]).name for command in started] == ["M", "L"]
    assert all(command[-4:-2] == ["--dtype", "f32"] for command in started)


def test_a_reference_that_does_not_load_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compare
    import report
    from worker import WorkerError

    def refuse(*_: Any) -> None:
        raise WorkerError("it ended with status -9")

    monkeypatch.setattr(compare, "Worker", refuse)
    options = argparse.Namespace(
        out=tmp_path, shapes=["1:8:4"], threads=2, work=tmp_path, engine_options="", load_seconds=1
    )
    assert compare.reference_ids(tmp_path / "M", options) is None
    text = report.table(report.read(tmp_path))
    assert "- mpt_serve:f32 on M failed: no reference for the first ids: it ended with status -9" in text
