"""Results on disk: what a run that was killed leaves, and what the next one makes of it."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mpt_serve.batches.input_lines import BadLineError
from mpt_serve.batches.pending import pending
from mpt_serve.batches.result_files import ResultFiles, ResultFilesError
from mpt_serve.batches.results import Result


def ok(custom_id: str) -> Result:
    return Result.of_response(custom_id, 200, "req-1", {"text": "\ud800"})


def files(folder: Path) -> ResultFiles:
    return ResultFiles(folder / "out.jsonl", folder / "errors.jsonl")


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_results_go_to_their_files_and_are_known_to_the_next_run(tmp_path: Path) -> None:
    with files(tmp_path) as results:
        results.append(ok("a"))
        results.append(Result.of_response("b", 400, "req-2", {"error": {}}))
        results.append(Result.of_failure("c", "batch_expired", "too late"))
        results.append(Result.of_bad_line(4, BadLineError("invalid_json_line", "Line 4 is no JSON.")))
        assert (results.completed, results.failed) == (1, 3)
    (done,) = records(tmp_path / "out.jsonl")
    assert done["response"] == {"status_code": 200, "request_id": "req-1", "body": {"text": "\ud800"}}
    assert [record["custom_id"] for record in records(tmp_path / "errors.jsonl")] == ["b", "c", None]
    with files(tmp_path) as again:
        assert (again.finished, again.bad_lines) == ({"a", "b", "c"}, {4})
        assert (again.completed, again.failed) == (1, 3)


@pytest.mark.parametrize(
    "left", [b"{", ok("b").as_line()[:40], ok("b").as_line()[:-1], b'{"id": "ba\0\0\0', b"\0\0"], ids=range(5)
)
def test_what_a_killed_run_has_not_finished_is_removed(tmp_path: Path, left: bytes) -> None:
    whole = ok("a").as_line()
    (tmp_path / "out.jsonl").write_bytes(whole + left)
    with files(tmp_path) as results:
        assert results.finished == {"a"}
        results.append(ok("b"))
    assert [record["custom_id"] for record in records(tmp_path / "out.jsonl")] == ["a", "b"]


@pytest.mark.parametrize("content", [b"notes\n", b"notes", b'{"custom_id": "a"}\n', b"[1]\n", b"\xff\n"])
def test_files_of_others_are_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.jsonl").write_bytes(content)
    with pytest.raises(ResultFilesError, match="something else than results"), files(tmp_path):
        pass
    assert (tmp_path / "out.jsonl").read_bytes() == content
    (tmp_path / "out.jsonl").write_bytes(b"")
    with files(tmp_path):  # the refusal has left no lock
        pass


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    with files(tmp_path), pytest.raises(ResultFilesError, match="another run"), files(tmp_path):
        pass


def test_of_a_result_that_does_not_fit_on_the_disk_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def write_a_part(descriptor: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(descriptor, data[:20])

    with files(tmp_path) as results:
        results.append(ok("a"))
        monkeypatch.setattr(os, "write", write_a_part)
        with pytest.raises(OSError, match="no space"):
            results.append(ok("b"))
        monkeypatch.undo()
        results.append(ok("b"))
        assert (results.completed, results.finished) == (2, {"a", "b"})
    assert [record["custom_id"] for record in records(tmp_path / "out.jsonl")] == ["a", "b"]


def test_what_is_pending(tmp_path: Path) -> None:
    def request(custom_id: str, url: str = "/v1/completions") -> str:
        return json.dumps({"custom_id": custom_id, "url": url, "body": {}})

    file = tmp_path / "in.jsonl"
    lines = [request("a"), "no JSON", request("b"), request("a"), request("c", "/x"), request("c"), request("c", "/x")]
    file.write_text("\n".join(lines))

    def left(results: ResultFiles) -> list[tuple[str | None, int | None]]:
        return [(item.custom_id, item.line if isinstance(item, Result) else None) for item in pending(file, results)]

    with files(tmp_path) as results:
        expected = [("a", None), (None, 2), ("b", None), (None, 4), ("c", 5), (None, 6), (None, 7)]
        assert left(results) == expected
        results.append(ok("a"))
        for item in pending(file, results):
            if isinstance(item, Result):
                results.append(item)
        assert left(results) == [("b", None)]
    with files(tmp_path) as results:
        assert left(results) == [("b", None)]
