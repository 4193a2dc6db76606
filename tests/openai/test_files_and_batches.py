"""/v1/files and /v1/batches over HTTP, with the official client where it can say it."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_backend import FakeBackend
from loopback_server import Server, serving
from test_errors import check_error

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.api_key import new_key
from mpt_serve.batches import backoff, batch_run
from mpt_serve.batches.batch_run import LaterError
from mpt_serve.batches.input_lines import BatchLine
from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.batches import BatchSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app
from mpt_serve.openai.backend import Readiness
from mpt_serve.openai.background import BackgroundBackend
from mpt_serve.openai.batching import Batching, BatchRequests

ALICE, ALICES = new_key("alice")
BOB, BOBS = new_key("bob")


class Batches:
    """A server with a folder for batches, whose runner works in a separate thread within `start`."""

    def __init__(self, folder: Path, with_keys: bool = False) -> None:
        self.backend = FakeBackend()
        self.limits = Limits(max_body_bytes=20_000)
        bounds = {"max_files": 6, "max_stored_bytes": 100_000, "max_unfinished": 2, "max_requests": 50}
        self.settings = BatchSettings(folder=str(folder / "store"), **bounds)  # type: ignore[arg-type]
        access = None
        if with_keys:
            keys = folder / "keys"
            keys.write_text("\n".join(key.line() for key in (ALICES, BOBS)))
            access = AccessControl.of(AccessSettings(key_file=str(keys)), self.limits)
        self.batching = self.load()
        self.app = create_app(self.backend, self.limits, access, batching=self.batching)

    def load(self) -> Batching:
        """Return what another process would make of the folder."""
        batching = Batching.of(self.settings, self.backend, self.limits)
        assert batching is not None
        return batching

    def start(self) -> "Runner":
        self.running = self.load()
        return Runner(self.running)

    def counted(self) -> dict[str, Any]:
        """Return what the runner that `start` started last has counted."""
        return Batching.counters(self.running)


class Runner:
    """A runner as another process would have it; a context manager."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._loop = asyncio.new_event_loop()
        self._task: Future[None]

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._batching.runner._period_s = 0.02
        self._task = asyncio.run_coroutine_threadsafe(self._batching.runner.run(), self._loop)

    def __exit__(self, *_: object) -> None:
        self._task.cancel()
        # The cancelled task closes what it has open.
        asyncio.run_coroutine_threadsafe(self._idle(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _idle() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "_PERIOD_S", 0.02)
    monkeypatch.setattr(backoff, "_FIRST_S", 0.01)


@pytest.fixture
def batches(tmp_path: Path) -> Batches:
    return Batches(tmp_path)


@pytest.fixture
def server(batches: Batches) -> Iterator[Server]:
    with serving(batches.backend, app=batches.app) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def line(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body or {"prompt": custom_id}}


def upload(client: openai.OpenAI, *lines: dict[str, Any] | str) -> openai.types.FileObject:
    content = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return client.files.create(file=("in.jsonl", content.encode()), purpose="batch")


def create(client: openai.OpenAI, *lines: dict[str, Any] | str, **more: Any) -> openai.types.Batch:
    options = {"endpoint": "/v1/completions", "completion_window": "24h", **more}
    return client.batches.create(input_file_id=upload(client, *lines).id, **options)


def wait_for(client: openai.OpenAI, batch: openai.types.Batch, *statuses: str) -> openai.types.Batch:
    give_up = time.monotonic() + 60
    while (found := client.batches.retrieve(batch.id)).status not in statuses:
        assert time.monotonic() < give_up, found
        time.sleep(0.01)
    return found


def records(client: openai.OpenAI, file_id: str | None) -> dict[str | None, dict[str, Any]]:
    """Return the records of a file of results by their custom_id, of which each has one."""
    if file_id is None:
        return {}
    found = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    assert len({record["custom_id"] for record in found}) == len(found)
    return {record["custom_id"]: record for record in found}


class TestFiles:
    def test_the_life_of_a_file(self, client: openai.OpenAI) -> None:
        file = client.files.create(file=("../in.jsonl", b"{}\n"), purpose="batch")
        assert (file.filename, file.bytes, file.purpose, file.status) == ("in.jsonl", 3, "batch", "processed")
        assert client.files.retrieve(file.id) == file
        assert client.files.content(file.id).read() == b"{}\n"
        assert [each.id for each in client.files.list()] == [file.id]
        assert client.files.delete(file.id).deleted
        assert list(client.files.list()) == []
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError, match="no file with this id"):
                call(file.id)

    def test_pages(self, client: openai.OpenAI, http: httpx.Client) -> None:
        ids = {upload(client, line("a")).id for _ in range(5)}
        listed = [file.id for file in client.files.list(limit=2)]  # the client gets further pages by itself
        assert set(listed) == ids
        assert [file.id for file in client.files.list(limit=2, order="asc")] == listed[::-1]
        assert list(client.files.list(purpose="batch_output")) == []
        page = http.get("/v1/files", params={"limit": 2, "colour": "red"})
        assert (page.json()["has_more"], page.headers["x-mpt-ignored-fields"]) == (True, "colour")
        assert (page.json()["first_id"], page.json()["last_id"]) == (listed[0], listed[1])
        for name, value in (("limit", "0"), ("limit", "x"), ("order", "up"), ("after", "file-x")):
            assert check_error(http.get("/v1/files", params={name: value}), 400, "invalid_value")["param"] == name

    def test_files_expire(self, client: openai.OpenAI, batches: Batches) -> None:
        expiry = {"anchor": "created_at", "seconds": 3600}
        file = client.files.create(file=b"{}", purpose="batch", expires_after=expiry)  # type: ignore[arg-type]
        assert file.expires_at == file.created_at + 3600
        batches.batching.files._clock = lambda: file.created_at + 3600
        assert list(client.files.list()) == []
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)

    def test_uploads_are_bounded(self, client: openai.OpenAI, http: httpx.Client) -> None:
        with pytest.raises(openai.APIStatusError) as too_large:
            upload(client, "x" * 20_000)
        assert too_large.value.status_code == 413
        for _ in range(5):
            upload(client, "x" * 19_000)
        with pytest.raises(openai.BadRequestError, match="5000 more may be stored"):
            upload(client, "x" * 19_000)
        upload(client, "x")
        with pytest.raises(openai.BadRequestError, match="there are 6 files, and may be 6"):
            upload(client, "x")

    @pytest.mark.parametrize(
        ("form", "param"),
        [
            ({"data": {"purpose": "batch"}}, "file"),
            ({"data": {"purpose": "batch", "file": "text"}}, "file"),
            ({"files": {"file": ("a", b"{}")}}, "purpose"),
            ({"files": {"file": ("a", b"{}")}, "data": {"purpose": "vision"}}, "purpose"),
            ({"files": [("file", ("a", b"{}"))] * 2, "data": {"purpose": "batch"}}, None),
            ({"files": {"file": ("a", b"{}"), "purpose": (None, b"\xff")}}, None),
            (
                {"files": {"file": ("a", b"{}")}, "data": {"purpose": "batch", "expires_after[anchor]": "created_at"}},
                "expires_after[seconds]",
            ),
            (
                {"files": {"file": ("a", b"{}")}, "data": {"purpose": "batch", "expires_after[seconds]": "9"}},
                "expires_after[seconds]",
            ),
            (
                {"files": {"file": ("a", b"{}")}, "data": {"purpose": "batch", "expires_after[seconds]": "soon"}},
                "expires_after[seconds]",
            ),
        ],
    )
    def test_wrong_forms(self, http: httpx.Client, form: dict[str, Any], param: str | None) -> None:
        if "files" not in form:
            form = {"files": {name: (None, value) for name, value in form["data"].items()}}
        assert check_error(http.post("/v1/files", **form), 400, "invalid_value")["param"] == param

    def test_what_is_no_form(self, http: httpx.Client) -> None:
        check_error(http.post("/v1/files", json={"purpose": "batch"}), 415, "unsupported_media_type")
        headers = {"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"}
        check_error(http.post("/v1/files", content=b"x", headers=headers), 415, "unsupported_media_type")
        del headers["content-encoding"]
        check_error(http.post("/v1/files", content=b"x", headers=headers), 400, "invalid_value")

    @pytest.mark.parametrize("file_id", ["file-x", "..%2f..%2fkeys", "%2e%2e", "file-" + "0" * 24, "%00"])
    def test_no_id_leads_out_of_the_folder(self, http: httpx.Client, file_id: str) -> None:
        for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{file_id}"):
            assert http.get(path).status_code in (401, 404)

    def test_a_file_without_its_content_is_none(self, client: openai.OpenAI, batches: Batches) -> None:
        file = upload(client, line("a"))
        batches.batching.files.path("", file.id).unlink()
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)
        with pytest.raises(openai.BadRequestError):
            client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")

    def test_without_a_folder_requests_are_refused(self) -> None:
        backend = FakeBackend()
        with serving(backend) as server, httpx.Client(base_url=server.url) as http:
            for path in ("/v1/files", "/batches", "/v1/batches/x"):
                assert "batches.folder" in check_error(http.get(path), 404, "not_enabled")["message"]
        assert Batching.of(BatchSettings(), backend, Limits()) is None


class TestBatches:
    def test_the_life_of_a_batch(self, client: openai.OpenAI, batches: Batches) -> None:
        lines = [line("a"), "no JSON", line("a", prompt="again"), line("b", prompt=5), line("c", "/v1/embeddings")]
        batch = create(
            client, *lines, metadata={"night": "1"}, output_expires_after={"anchor": "created_at", "seconds": 7200}
        )
        assert (batch.status, batch.metadata, batch.output_file_id) == ("validating", {"night": "1"}, None)
        assert batch.expires_at == batch.created_at + 24 * 3600
        assert client.files.delete(batch.input_file_id).deleted  # the batch has its content
        with batches.start():
            done = wait_for(client, batch, "completed")
            Server.wait_until(lambda: batches.counted()["batches_ended"]["completed"] == 1)
            counted = batches.counted()
        assert counted["batch_requests"] == {"completed": 1, "failed": 4}
        assert counted["batch_tokens"] == {"prompt": 1, "generated": 2}
        assert done.request_counts is not None
        assert done.request_counts.to_dict() == {"total": 5, "completed": 1, "failed": 4}
        assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at)
        outputs, errors = records(client, done.output_file_id), done.error_file_id
        assert outputs["a"]["response"]["status_code"] == 200
        assert outputs["a"]["response"]["body"]["choices"][0]["text"] == "a"
        assert errors is not None
        failed = [json.loads(each) for each in client.files.content(errors).text.splitlines()]
        codes = {each["custom_id"]: (each["error"] or each["response"]["body"]["error"])["code"] for each in failed}
        assert codes["b"] == "invalid_value"
        assert codes["c"] == "invalid_url"
        assert sorted(each["error"]["line"] for each in failed if each["error"]) == [2, 3, 5]
        (result,) = [file for file in client.files.list(purpose="batch_output") if file.id == done.output_file_id]
        assert (result.filename, result.expires_at) == (f"{batch.id}_output.jsonl", result.created_at + 7200)
        assert [each.id for each in client.batches.list()] == [batch.id]
        with pytest.raises(openai.BadRequestError, match="it is completed"):
            client.batches.cancel(batch.id)
        assert list(batches.batching.batches.folder(batches.batching.batches.all_of("")[0]).iterdir())

    @pytest.mark.parametrize(
        ("url", "body"),
        [
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ("/v1/embeddings", {"input": "a"}),
            ("/v1/responses", {"input": "a"}),
        ],
    )
    def test_every_endpoint(self, client: openai.OpenAI, batches: Batches, url: str, body: dict[str, Any]) -> None:
        batch = create(client, line("a", url, **body), endpoint=url)
        with batches.start():
            done = wait_for(client, batch, "completed")
        assert records(client, done.output_file_id)["a"]["response"]["status_code"] == 200

    def test_its_requests_take_nothing_from_others(self, client: openai.OpenAI, batches: Batches) -> None:
        with batches.start():
            wait_for(client, create(client, line("a")), "completed")
        ((_, params),) = batches.backend.started
        assert params.background
        assert (batches.backend.clients, batches.backend.admitted) == ([""], [])
        background = BackgroundBackend(batches.backend)
        batches.backend.full = True
        assert (background.retry_after_s(), background.load()) == (None, 0)
        with background.reserve() as reservation:
            reservation.admit([5], 1)
        assert asyncio.run(background.readiness()).ready

    def test_what_was_interrupted_continues_without_loss_and_repetition(
        self, client: openai.OpenAI, batches: Batches
    ) -> None:
        names = [f"line {number}" for number in range(40)]
        batch = create(client, *map(line, names))
        completed = 0
        for enough in (3, 12):
            batches.backend.hang_from = len(batches.backend.started) + enough - completed
            completed = enough
            with batches.start():
                give_up = time.monotonic() + 60
                while client.batches.retrieve(batch.id).request_counts.completed < enough:  # type: ignore[union-attr]
                    assert time.monotonic() < give_up
                    time.sleep(0.01)
            assert client.batches.retrieve(batch.id).status == "in_progress"
        started = len(batches.backend.started)
        batches.backend.hang_from = None
        with batches.start(), batches.start():  # of two processes one works on it
            done = wait_for(client, batch, "completed")
        assert len(batches.backend.started) - started <= len(names) - 12
        outputs = records(client, done.output_file_id)
        assert {name: outputs[name]["response"]["body"]["choices"][0]["text"] for name in names} == {
            name: name for name in names
        }
        assert done.error_file_id is None

    def test_what_ends_while_its_results_are_published(self, client: openai.OpenAI, batches: Batches) -> None:
        """A process that ended between two steps of the end leaves nothing that the next one does not complete."""
        batch = create(client, line("a"))
        with batches.start():
            done = wait_for(client, batch, "completed")
        store = batches.batching.batches
        stored = store.all_of("")[0]
        (store._active / f"{store._owner('').name}.{batch.id}").touch()
        with batches.start():
            give_up = time.monotonic() + 60
            while store.active():
                assert time.monotonic() < give_up
                time.sleep(0.01)
        assert wait_for(client, batch, "completed") == done
        assert not store.input(stored).exists()

    def test_cancelling(self, client: openai.OpenAI, batches: Batches) -> None:
        batches.backend.hang_after = 0
        batch = create(client, *(line(f"{number}") for number in range(5)))
        assert client.batches.cancel(batch.id).status == "cancelling"
        assert client.batches.cancel(batch.id).status == "cancelling"
        with batches.start():
            assert wait_for(client, batch, "cancelled").cancelling_at is not None
            running = create(client, *(line(f"{number}") for number in range(5)))
            Server.wait_until(lambda: len(batches.backend.running) == 5)
            counted = batches.counted()
            assert (counted["batches_running"], counted["batch_requests_running"]) == (1, 5)
            assert counted["batches_unfinished"] >= 1
            client.batches.cancel(running.id)
            done = wait_for(client, running, "cancelled")
            Server.wait_until(lambda: batches.counted()["batches_ended"]["cancelled"] == 2)
            Server.wait_until(lambda: batches.counted()["batches_unfinished"] == 0)
            assert batches.counted()["batch_requests_running"] == batches.counted()["batches_running"] == 0
        assert (done.output_file_id, done.error_file_id) == (None, None)
        assert batches.backend.running == set()

    def test_expiry(self, client: openai.OpenAI, batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
        batches.backend.hang_after = 0
        batch = create(client, line("a"), line("b"), completion_window="1m")
        expired = [False]
        monkeypatch.setattr(batch_run.BatchRun, "_is_over", lambda self: expired[0])
        with batches.start():
            Server.wait_until(lambda: len(batches.backend.running) == 2)
            expired[0] = True
            done = wait_for(client, batch, "expired")
        assert done.expired_at is not None
        errors = records(client, done.error_file_id)
        assert {name: record["error"]["code"] for name, record in errors.items()} == dict.fromkeys(
            ["a", "b"], "batch_expired"
        )

    @pytest.mark.parametrize(
        ("lines", "code"), [([""], "empty_file"), ([line(str(n)) for n in range(51)], "too_many_requests")]
    )
    def test_what_is_no_batch(self, client: openai.OpenAI, batches: Batches, lines: list[Any], code: str) -> None:
        batch = create(client, *lines)
        with batches.start():
            done = wait_for(client, batch, "failed")
        assert done.errors is not None
        assert done.errors.data is not None
        assert [error.code for error in done.errors.data] == [code]

    def test_a_server_that_is_busy_is_waited_for(self, client: openai.OpenAI, batches: Batches) -> None:
        batches.backend.state = Readiness(False, "loading")
        batch = create(client, line("a"))
        with batches.start():
            wait_for(client, batch, "in_progress")
            batches.backend.state = Readiness(True)
            done = wait_for(client, batch, "completed")
        assert records(client, done.output_file_id).keys() == {"a"}

    def test_a_run_that_fails_is_tried_again(
        self, client: openai.OpenAI, batches: Batches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failures = iter([OSError("no space left on device")] * 2)
        append = batch_run.ResultFiles.append

        def fail_at_first(self: Any, result: Any) -> None:
            if failure := next(failures, None):
                raise failure
            append(self, result)

        monkeypatch.setattr(batch_run.ResultFiles, "append", fail_at_first)
        batch = create(client, line("a"), line("b"))
        with batches.start():
            done = wait_for(client, batch, "completed")
        assert records(client, done.output_file_id).keys() == {"a", "b"}

    def test_there_may_be_some(self, client: openai.OpenAI) -> None:
        create(client, line("a"))
        create(client, line("a"))
        with pytest.raises(openai.RateLimitError, match="2 batches have not ended"):
            create(client, line("a"))
        assert len(list(client.batches.list(limit=1))) == 2

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("input_file_id", None),
            ("input_file_id", "file-x"),
            ("endpoint", "/v1/files"),
            ("completion_window", "24"),
            ("completion_window", "9999d"),
            ("metadata", {"a": 1}),
            ("output_expires_after.seconds", {"anchor": "created_at", "seconds": 5}),
        ],
    )
    def test_wrong_bodies(self, client: openai.OpenAI, http: httpx.Client, field: str, value: Any) -> None:
        body = {"input_file_id": upload(client, line("a")).id, "endpoint": "/v1/completions"}
        response = http.post("/v1/batches", json={**body, field.partition(".")[0]: value})
        assert check_error(response, 400, "invalid_value")["param"] == field

    def test_what_is_ignored_is_named(self, client: openai.OpenAI, http: httpx.Client) -> None:
        body = {"input_file_id": upload(client, line("a")).id, "endpoint": "/v1/completions", "colour": "red"}
        assert http.post("/v1/batches", json=body).headers["x-mpt-ignored-fields"] == "colour"
        assert http.get("/v1/batches?order=asc").headers["x-mpt-ignored-fields"] == "order"


def test_each_name_has_its_own(tmp_path: Path) -> None:
    batches = Batches(tmp_path, with_keys=True)
    with serving(batches.backend, app=batches.app) as server:
        url = f"{server.url}/v1"
        alice, bob = (openai.OpenAI(base_url=url, api_key=key, max_retries=0) for key in (ALICE, BOB))
        file, batch = upload(alice, line("a")), create(alice, line("a"))
        for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
            with pytest.raises(openai.NotFoundError, match="no file with this id"):
                call(file.id)
        for action in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError, match="no batch with this id"):
                action(batch.id)
        with pytest.raises(openai.BadRequestError, match="input_file_id"):
            bob.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        assert [*bob.files.list(), *bob.batches.list()] == []
        create(alice, line("a"))
        create(bob, line("a"))
        with batches.start():
            wait_for(alice, batch, "completed")
        assert "alice" in batches.backend.clients
        for client in (alice, bob):
            client.close()


def test_errors_of_the_server_are_results_and_those_of_the_moment_are_not() -> None:
    backend = FakeBackend()
    requests = BatchRequests(backend, Limits())
    own = BatchLine(1, "a", "/v1/completions", {"prompt": "a"})
    backend.fail_after = 0
    result = asyncio.run(requests.send("", own))
    assert result.record["response"]["status_code"] == 500
    backend.state = Readiness(False, "The server is shutting down.", "shutting_down")
    with pytest.raises(LaterError):
        asyncio.run(requests.send("", own))
