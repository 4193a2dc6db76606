"""A started server that requires keys: through Serve's proxy, with a key file that changes while it runs."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server import ServerProcess, free_port, serve_config
from waiting import wait_for

from mpt_serve.access.api_key import append_line, new_key
from mpt_serve.access.audit_log import check_audit_file

pytestmark = pytest.mark.slow

USER, USERS = new_key("user")
ADMIN, ADMINS = new_key("operator", ["admin"])
LATER, LATERS = new_key("later", tokens_per_minute=5)


class Guarded:
    """The server, and its folder with `keys` and `audit`. Its spans go to the logs of its processes."""

    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.url = server.url
        self.folder = folder
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=60)

    def status(self, path: str, key: str | None = None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # With the whole URL: of `//stats` alone httpx makes the path `/`.
        return self.http.get(f"{self.url}{path}", headers=headers).status_code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("server")
    for key in (USERS, ADMINS):
        append_line(folder / "keys", key)
    access = {"key_file": str(folder / "keys"), "audit_log_dir": str(folder / "audit")}
    args = {
        "model": str(tiny_checkpoint),
        "engine": {"max_num_seqs": 4, "pre_compile": False},
        "access": access,
        "limits": {"max_waiting_requests": 4},
    }
    traced = {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    config = serve_config(args, free_port())
    with ServerProcess.of(config, folder, command="mpt-serve", variables=traced) as server:
        server.wait_ready()
        wait_for(lambda: f"s at {server.url} (" in server.output())
        own = Guarded(server, folder)
        yield own
        own.http.close()


def test_what_needs_which_key(guarded: Guarded) -> None:
    assert guarded.status("/health") == guarded.status("/ready") == 200
    for path in ("/v1/models", "/version", "/stats", "/metrics", "/nothing", "//stats", "/%73tats", "/stats/"):
        assert guarded.status(path) == guarded.status(path, "sk-wrong") == 401, path
    assert guarded.status("/v1/models", USER) == 200
    assert guarded.status("/v1/models", ADMIN) == 403
    for path in ("/stats", "/metrics", "/%73tats"):
        assert (guarded.status(path, USER), guarded.status(path, ADMIN)) == (403, 200)


def test_a_client_and_what_is_measured_and_recorded(guarded: Guarded) -> None:
    url = f"{guarded.url}/v1"
    with openai.OpenAI(base_url=url, api_key=USER, max_retries=0) as client:
        model = client.models.list().data[0].id
        stream = client.completions.create(model=model, prompt="a secret", max_tokens=8, stream=True)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("length", "stop")
    body = guarded.http.get("/metrics", headers={"Authorization": f"Bearer {ADMIN}"}).text
    values = {
        (sample.name, sample.labels.get("path")): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    assert values["mpt_serve_time_to_first_token_seconds_count", None] == 1
    assert values["vllm:time_to_first_token_seconds_count", None] == 1
    assert values["mpt_serve_choice_output_tokens_sum", None] == values["vllm:generation_tokens_total", None] > 0
    assert values["mpt_serve_weight_bytes", None] > 0
    assert values["mpt_serve_ingress_resident_bytes", None] > 2**20
    (file,) = (guarded.folder / "audit").iterdir()
    wait_for(lambda: '"path":"/v1/completions"' in file.read_text())
    text = file.read_text()
    assert "secret" not in text
    assert check_audit_file(file).records == len(text.splitlines())
    record = next(json.loads(line) for line in text.splitlines() if "completions" in line)
    assert (record["client"], record["key"], record["status"]) == ("user", USERS.id, 200)


def test_everything_listens_on_this_machine_alone(guarded: Guarded) -> None:
    """Ray's processes, too: by themselves they listen on every address."""
    port = int(guarded.url.rpartition(":")[2])
    addresses = guarded.server.listens_on()
    assert f"0100007F:{port:04X}" in addresses
    assert len(addresses) > 10
    assert {address.rpartition(":")[0][-8:] for address in addresses} == {"0100007F"}


def test_a_trace_goes_through_all_deployments_with_the_requests_id(guarded: Guarded) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {
        "Authorization": f"Bearer {USER}",
        "X-Request-Id": "traced-1",
        "traceparent": f"00-{trace}-00f067aa0ba902b7-01",
    }
    response = guarded.http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 2}, headers=headers)
    assert (response.status_code, response.headers["x-request-id"]) == (200, "traced-1")

    def spans() -> dict[str, str]:
        """The request's id in each span of the trace, by the span's name."""
        texts = [file.read_text(errors="replace") for file in guarded.server.log_files() if file.suffix == ".out"]
        found = [span for text in texts for span in re.findall(r"^\{\n.*?^\}", text, re.MULTILINE | re.DOTALL)]
        own = [json.loads(span) for span in found if f"0x{trace}" in span]
        return {span["name"]: span["attributes"].get("mpt_serve.request_id") for span in own}

    wait_for(lambda: len(spans()) >= 3)
    found = spans()
    assert set(found) == {"POST /v1/completions", "tokenize", "generate"}
    assert found["POST /v1/completions"] == "traced-1"
    assert found["generate"].startswith("traced-1")


def test_a_flood_without_keys_takes_no_places_of_those_with_one(guarded: Guarded) -> None:
    """The proxy lets four requests to generate pass at the same time; many more come without a key."""
    ended, statuses = threading.Event(), set()
    body = {"prompt": "a", "max_tokens": 1}

    def flood() -> None:
        with httpx.Client(base_url=guarded.url, timeout=60) as http:
            while not ended.is_set():
                statuses.add(http.post("/v1/completions", json=body).status_code)

    threads = [threading.Thread(target=flood) for _ in range(32)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: statuses >= {401, 503})
        headers = {"Authorization": f"Bearer {USER}"}
        seen = [guarded.http.post("/v1/completions", json=body, headers=headers).status_code for _ in range(50)]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert set(seen) == {200}
    assert statuses == {401, 503}


def test_keys_are_added_limited_and_removed_without_a_restart(guarded: Guarded) -> None:
    append_line(guarded.folder / "keys", LATERS)
    wait_for(lambda: guarded.status("/v1/models", LATER) == 200)
    headers = {"Authorization": f"Bearer {LATER}"}
    body = {"prompt": "some more tokens than five", "max_tokens": 2}
    assert guarded.http.post("/v1/completions", json=body, headers=headers).status_code == 200
    refused = guarded.http.post("/v1/completions", json=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    (guarded.folder / "keys").write_text(f"{USERS.line()}\n")
    wait_for(lambda: guarded.status("/v1/models", LATER) == 401)
    assert guarded.status("/v1/models", USER) == 200
    assert guarded.status("/stats", ADMIN) == 401
