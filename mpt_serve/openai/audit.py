"""One record of the audit log for each request."""

import time
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mpt_serve.access.audit_log import AuditLog
from mpt_serve.openai.request_log import METHODS, POLLS
from mpt_serve.openai.route_names import RouteNames

__all__ = ["Audit"]


class Audit:
    """ASGI middleware that records who sent a request and what became of it. Polls are left out unless refused.

    names: what is recorded of paths.
    """

    def __init__(self, app: ASGIApp, log: AuditLog, names: RouteNames) -> None:
        self._app = app
        self._log = log
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        at, started = datetime.now(UTC), time.monotonic()
        status = None

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        finally:
            path, method = scope["path"], scope["method"]
            if path not in POLLS or status not in (200, 503):
                state = scope.get("state", {})
                client, usage = state.get("client"), state.get("usage")
                self._log.write(
                    {
                        "time": at.isoformat(timespec="milliseconds"),
                        "request_id": state.get("request_id"),
                        "client": None if client is None else client.name,
                        "key": state.get("key_id"),
                        "method": method if method in METHODS else None,
                        "path": self._names.of(path),
                        "status": status,
                        "seconds": round(time.monotonic() - started, 3),
                        "choices": None if usage is None else usage.choices,
                        "prompt_tokens": None if usage is None else usage.prompt_tokens,
                        "generated_tokens": None if usage is None else usage.generated_tokens,
                    }
                )
