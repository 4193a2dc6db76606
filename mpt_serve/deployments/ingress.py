"""The Ingress deployment: HTTP in, HTTP out."""

import asyncio
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mpt_serve.access.access_control import AccessControl
from mpt_serve.access.audit_log import AuditLog
from mpt_serve.configuration.model_folder import tokenizer_folder
from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments.admission import Admission
from mpt_serve.deployments.cores import leave_cores_to_kernels
from mpt_serve.deployments.direct_ingress import DirectRuns
from mpt_serve.deployments.drain import follow_replica_end, graceful_shutdown_timeout_s, run_until_end
from mpt_serve.deployments.grpc_address import listen_on_the_nodes_address
from mpt_serve.deployments.logs import log_through_serve
from mpt_serve.deployments.memory import resident_bytes
from mpt_serve.deployments.metrics import exposition
from mpt_serve.deployments.readiness import Waiting
from mpt_serve.deployments.replica_updates import ReplicaUpdates
from mpt_serve.deployments.replicas import Replicas
from mpt_serve.deployments.response_link import LinkedResponses
from mpt_serve.deployments.same_model_router import SameModelRouter
from mpt_serve.deployments.serve_backend import ServeBackend
from mpt_serve.deployments.takeover import Takeover
from mpt_serve.deployments.traced_app import TracedApp
from mpt_serve.deployments.tracing import tracing_from_environment
from mpt_serve.deployments.version import Version
from mpt_serve.openai.app import create_app
from mpt_serve.openai.backend import ModelInfo
from mpt_serve.openai.batching import Batching
from mpt_serve.openai.route_names import RouteNames
from mpt_serve.text.chat_template import ChatTemplate, MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["Ingress", "chat_template"]

logger = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """Serves the OpenAI-style API with the Tokenizer and Generator deployments."""

    def __init__(self, settings: Settings, tokenizer: DeploymentHandle, generator: DeploymentHandle) -> None:
        log_through_serve()
        listen_on_the_nodes_address()
        folder = tokenizer_folder(settings.model)
        text = TextTokenizer.from_folder(folder)
        limits = settings.limits
        self._limits = limits
        self._root_path = settings.server_root_path
        self._playground = settings.playground
        context = serve.get_replica_context()
        self._name = str(context.replica_id.unique_id)
        self._ingresses = Replicas(serve.get_deployment_handle("Ingress", context.app_name))
        self._access = AccessControl.of(settings.access, limits)
        self._cors_origins = settings.access.cors_origins
        self._audit_log = _audit_log(settings.access.audit_log_dir, self._name)
        self._version = Version.of(settings)
        SameModelRouter.model = self._version.model  # of the handles' routers in this process
        updates = ReplicaUpdates(["Ingress", "Tokenizer", "Generator"])
        self._takeover = Takeover("Ingress", ["Tokenizer", "Generator"], self._version, updates)
        self._backend = ServeBackend(
            _model_info(settings, folder, text, *chat_template(folder, settings, text)),
            text,
            tokenizer,
            generator,
            Admission(limits.max_waiting_requests, limits.max_waiting_prompt_tokens),
            updates,
            self._version,
            Waiting(limits.replica_wait_s, limits.max_waiting_requests),
            settings.engine.reply_timeout_s,
            limits.stream_interval_ms / 1000,
        )
        self._batching = Batching.of(settings.batches, self._backend, limits)
        self._tracing = tracing_from_environment()
        self._tasks: list[asyncio.Task[None]] = []

    def record_replica_metadata(self) -> dict[str, str]:
        """Return what Serve tells other replicas about this one."""
        return self._version.metadata()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application when it may take requests; Serve calls this on its event loop after the constructor.

        By then the readiness is known, so that a replica that takes over from another refuses no request for that.
        """
        leave_cores_to_kernels()
        self._backend.listen(ray.util.get_node_ip_address())
        await self._takeover.wait()
        watch = self._backend.watch
        watch.has_served = self._takeover.replaces
        await watch.check()
        backend = self._backend
        background = [watch.run(), backend.signs.run(), follow_replica_end(backend.drain)]
        background += [watchdog.run() for watchdog in (backend.watchdog, backend.tokenizer_watchdog)]
        if self._access is not None:
            background.append(self._access.keys.watch())
        if self._batching is not None:
            background.append(run_until_end(self._batching.runner.run(), backend.drain))
        self._tasks = [asyncio.get_running_loop().create_task(work) for work in background]
        app = create_app(
            self._backend,
            self._limits,
            self._access,
            self._cors_origins,
            self._audit_log,
            self._backend.metrics,
            self._root_path,
            self._playground,
            self._batching,
        )
        app.router.routes.append(Route("/stats", self._stats, methods=["GET"]))
        app.router.routes.append(Route("/metrics", self._metrics, methods=["GET"]))
        served = self._backend.drain.following(app)
        if self._tracing is not None:
            names = RouteNames(route.path for route in app.routes if isinstance(route, Route))
            served = TracedApp(served, self._tracing, names, self._root_path)
        return LinkedResponses(served, DirectRuns(served))

    async def begin_drain(self) -> float:
        """Refuse new requests, and return the seconds after which those that run will have ended."""
        seconds = graceful_shutdown_timeout_s()
        self._backend.drain.refuse()
        self._backend.drain.end_within(seconds)
        return seconds

    async def num_responses(self) -> int:
        """Return how many HTTP requests have not been answered to the end."""
        return self._backend.drain.responses

    async def _stats(self, request: Request) -> JSONResponse:
        """Respond with the counters of every Generator replica as JSON, for operators and tests."""
        return JSONResponse({"replicas": await self._backend.stats()})

    async def _metrics(self, request: Request) -> Response:
        """Respond with the counters of all replicas in Prometheus' format."""
        generators, ingresses = await asyncio.gather(self._backend.stats(), self._all_counters())
        body = exposition(generators, ingresses, self._backend.model.id)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    async def counters(self) -> dict[str, Any]:
        """Return what this replica has counted, with its name as `ingress`."""
        return {
            "ingress": self._name,
            **self._backend.metrics.snapshot(),
            **Batching.counters(self._batching),
            "waiting": self._backend.num_waiting,
            "background_waiting": self._backend.background_queue.num_waiting,
            "resident_bytes": resident_bytes(),
        }

    async def _all_counters(self) -> list[dict[str, Any]]:
        """Return the counters of every Ingress replica that replies in time, this one's in any case."""
        others = [own for own in await self._ingresses.ask("counters") if own["ingress"] != self._name]
        return [await self.counters(), *others]


def chat_template(folder: Path, settings: Settings, text: TextTokenizer) -> tuple[str | None, str | None, str | None]:
    """Return the source of the model's chat template, why it takes no conversations, and why these have no tools.

    None for a reason: they can.
    """
    try:
        template = ChatTemplate.from_folder(folder, settings.chat_template, text)
    except MissingChatTemplateError as error:
        logger.warning("Chat is disabled: %s", error)
        return None, str(error), None
    template.close()
    return template.source, None, template.tools_refusal


def _audit_log(folder: str | None, replica: str) -> AuditLog | None:
    """Return a new log of this replica: the chain of each has one writer."""
    if folder is None:
        return None
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{replica}.jsonl"
    return AuditLog(Path(folder).expanduser() / name)


def _model_info(
    settings: Settings,
    folder: Path,
    text: TextTokenizer,
    chat_template: str | None,
    chat_refusal: str | None,
    tools_refusal: str | None,
) -> ModelInfo:
    return ModelInfo(
        id=settings.model_name,
        created=int(time.time()),
        max_model_len=settings.max_model_len or 0,  # the Generator reports it when it has loaded
        vocab_len=text.vocab_len,
        root=Path(settings.model).name
        if Path(settings.model).is_dir()
        else settings.model,  # paths on the server stay private
        chat_refusal=chat_refusal,
        chat_template=chat_template,
        tools_refusal=tools_refusal,
        embedding_pooling=settings.embedding_pooling,
        prompt_embeds=settings.engine.prompt_embeds,
        sampling_defaults=settings.sampling_defaults.of_model(folder),
        max_chars_per_token=text.max_chars_per_token,
    )
