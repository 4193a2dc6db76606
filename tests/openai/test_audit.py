"""What the audit log holds of requests: who, when, which, how much, and no text of theirs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from fake_backend import FakeBackend
from loopback_server import serving

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.api_key import new_key
from mpt_serve.access.audit_log import AuditLog, check_audit_file
from mpt_serve.configuration.access import AccessSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.app import create_app

KEY, STATED = new_key("user")
SECRET = "a-word-of-the-client"


def audited(folder: Path, requests: list[tuple[str, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Send requests with a key, and return the records of the log."""
    (folder / "keys").write_text(STATED.line())
    access = AccessControl.of(AccessSettings(key_file=str(folder / "keys")), Limits())
    log = AuditLog(folder / "audit.jsonl")
    backend = FakeBackend()
    with serving(backend, app=create_app(backend, None, access, audit_log=log)) as server:
        for method, path, options in requests:
            headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "r1", **options.pop("headers", {})}
            httpx.request(method, server.url + path, headers=headers, **options)
    log.close()
    text = (folder / "audit.jsonl").read_text()
    assert SECRET not in text
    assert KEY not in text
    records = [json.loads(line) for line in text.splitlines()]
    assert check_audit_file(folder / "audit.jsonl").records == len(records)
    return records


def test_a_completion(tmp_path: Path) -> None:
    body = {"prompt": SECRET, "max_tokens": 5, "n": 2, "user": SECRET}
    (record,) = audited(tmp_path, [("POST", "/v1/completions", {"json": body})])
    assert record["time"].endswith("+00:00")
    assert record["seconds"] >= 0
    assert {name: value for name, value in record.items() if name not in ("time", "seconds", "previous")} == {
        "request_id": "r1",
        "client": "user",
        "key": STATED.id,
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "choices": 2,
        "prompt_tokens": len(SECRET),
        "generated_tokens": 10,
    }


def test_the_lifespan_is_no_request(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(create_app(FakeBackend(), audit_log=log)({"type": "lifespan"}, receive, send))
    log.close()
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert check_audit_file(tmp_path / "audit.jsonl").records == 0


def test_refusals_and_unknown_paths(tmp_path: Path) -> None:
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/{SECRET}", {}),
        ("PATCH", "/v1/models", {}),
        ("GET", "/v1/models", {"headers": {"Authorization": f"Bearer {SECRET}"}}),
        ("GET", "/stats", {}),
        ("GET", "/health", {}),
        ("GET", "/ready", {}),
        ("GET", f"/v1/models/{SECRET}", {}),
        ("DELETE", f"/v1/files/{SECRET}", {}),
    ]
    records = audited(tmp_path, requests)
    assert [(r["method"], r["path"], r["status"], r["client"]) for r in records] == [
        ("GET", None, 404, "user"),
        ("PATCH", "/v1/models", 405, "user"),
        ("GET", "/v1/models", 401, None),
        ("GET", "/stats", 403, None),
        ("GET", "/v1/models/{id}", 404, "user"),
        ("DELETE", "/v1/files/{id}", 404, "user"),
    ]
    assert {record["prompt_tokens"] for record in records} == {None}
