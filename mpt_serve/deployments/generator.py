"""The Generator deployment: one model on its device, ids in, ids out. The only process that imports JAX."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mpt_serve.configuration.model_folder import model_path, tokenizer_folder
from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments.delta_link import delta_links
from mpt_serve.deployments.delta_mailbox import DeltaMailbox
from mpt_serve.deployments.engine_watch import NumbersWatch, StallWatch
from mpt_serve.deployments.grpc_address import listen_on_the_nodes_address
from mpt_serve.deployments.heartbeat import start_heartbeat
from mpt_serve.deployments.link_wire import LinkAddress
from mpt_serve.deployments.logs import log_through_serve
from mpt_serve.deployments.memory import device_bytes, memory_text, resident_bytes
from mpt_serve.deployments.replicas import own_names
from mpt_serve.deployments.start_report import reported_start
from mpt_serve.deployments.tracing import Carrier, tracing_from_environment, watched_generation
from mpt_serve.deployments.version import Version
from mpt_serve.deployments.watchdog import ReplicaReport
from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.status_log import StatusLog
from mpt_serve.structured_outputs.compiler import GrammarCompiler, LazyGrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from mpt_serve.engine import Engine

__all__ = ["Generator"]

logger = logging.getLogger(__name__)

_COMPILATION_S = 300.0  # that one step may take where it compiles its program


class Generator:
    """Holds an Engine, whose own thread runs the device, and streams its deltas."""

    def __init__(self, settings: Settings) -> None:
        log_through_serve()
        listen_on_the_nodes_address()
        self._replica, self._actor = own_names()
        self._version = Version.of(settings)
        with reported_start(self._replica):
            self._engine, self._grammars = _load(settings)
        self._links = delta_links(self._engine.cancel)
        self._engine.on_delivered = self._links.flush
        start_heartbeat(self._links.beat)
        stall_timeout_s = settings.engine.stall_timeout_s
        compiles = not settings.engine.pre_compile
        self._stall_watch = StallWatch(max(stall_timeout_s, _COMPILATION_S) if compiles else stall_timeout_s)
        self._numbers_watch = NumbersWatch()
        self._status_log = StatusLog(self._engine.stats, memory=memory_text if settings.do_memory_log else None)
        self._mailbox: DeltaMailbox | None = None
        self._tracing = tracing_from_environment()

    async def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        generated: Sequence[int] = (),
        spec: GrammarSpec | None = None,
        address: LinkAddress | None = None,
        carrier: Carrier | None = None,
        embeds: PromptEmbeds | None = None,
    ) -> AsyncIterator[Delta | str]:
        """Generate the request's choices; closing the iterator ends them in the engine.

        Yields the id of the link that carries the deltas, and ends when they have been sent. Without a link it yields
        the deltas themselves, those of one choice merged while the reader is busy.

        generated: ids that a request of one choice has already; it continues after them.
        spec: the grammar that every choice must match, which is compiled first.
        address: of the Ingress, for its link. carrier: of the request's trace; None where it is not traced.
        embeds: what stands in the prompt in place of ids.
        Raises RequestError for a request that the engine refuses, EngineClosedError when it has stopped or the link is
        lost.
        """
        with watched_generation(self._tracing, carrier, request_id, len(prompt_ids)) as watch:

            def submit(listener: Callable[[Delta], None]) -> str:
                return self._submit(prompt_ids, params, request_id, generated, spec, watch(listener), embeds)

            link = None if address is None else await self._links.to(address)
            if link is None or address is None:
                if self._mailbox is None:
                    self._mailbox = DeltaMailbox(asyncio.get_running_loop())
                deltas = self._mailbox.subscribe(params.n)
                await self._begin(partial(submit, deltas.post), request_id, spec)
                try:
                    async for delta in deltas:
                        yield delta
                finally:
                    self._engine.cancel(request_id)
                return
            request = link.open(address.number, request_id, params.n, params.background)
            try:
                await self._begin(partial(submit, request.post), request_id, spec)
                try:
                    link.flush()  # what `submit` itself may have posted
                    yield link.id
                    await request.ended
                finally:
                    self._engine.cancel(request_id)
            finally:
                link.close_request(address.number)

    async def end_choice(self, request_id: str, index: int) -> None:
        """End a choice that reached a stop string, if this replica has it; the request's other choices continue."""
        self._engine.cancel(request_id, index, "stop")

    def _submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        generated: Sequence[int],
        spec: GrammarSpec | None,
        on_delta: Callable[[Delta], None],
        embeds: PromptEmbeds | None = None,
    ) -> str:
        """Compile the grammar, if there is one, and submit the request. What the engine refuses is not compiled."""
        grammar = None
        if spec is not None:
            self._engine.check(prompt_ids, params, with_grammar=True, embeds=embeds)
            grammar = self._grammars.compile(spec)
        return self._engine.submit(prompt_ids, params, on_delta, request_id, generated, grammar, embeds)

    async def _begin(self, submit: Callable[[], str], request_id: str, spec: GrammarSpec | None) -> None:
        """Submit, on another thread where a grammar is to be compiled: the event loop does not have that time."""
        if spec is None:
            submit()
            return
        submitted = asyncio.get_running_loop().run_in_executor(None, submit)

        def withdraw(_: asyncio.Future[str]) -> None:
            if submitted.exception() is None:
                self._engine.cancel(request_id)

        try:
            await asyncio.shield(submitted)
        except asyncio.CancelledError:  # the thread cannot be stopped, but what it submits can
            submitted.add_done_callback(withdraw)
            raise

    def record_replica_metadata(self) -> dict[str, str]:
        """Return what Serve tells other replicas about this one."""
        return self._version.metadata()

    async def stats(self) -> dict[str, Any]:
        """Return the engine's `EngineStats` as a dictionary, readable without JAX, the hidden size and the memory."""
        memory = {
            "weight_bytes": self._engine.weight_bytes,
            "cache_bytes": self._engine.cache_bytes,
            "resident_bytes": resident_bytes(),
            "device_bytes": device_bytes(),
        }
        about = {"replica": self._replica, "hidden_size": self._engine.hidden_size}
        return {**about, **dataclasses.asdict(self._engine.stats()), **memory}

    async def report(self, address: LinkAddress | None = None) -> ReplicaReport:
        """Return what this replica works on, and whether it does.

        address: of the Ingress that asks; a link to it is opened.
        """
        link = None if address is None else self._links.to_if_open(address)
        stalled = ""
        try:
            await self.check_health()
        except RuntimeError as error:
            stalled = str(error)
        return ReplicaReport(self._actor, self._engine.request_ids(), stalled, None if link is None else link.id)

    async def check_health(self) -> None:
        """Raise RuntimeError if the engine stopped, stalled or computes no numbers: Serve then replaces it."""
        stats = self._engine.stats()
        if stats.error is not None:
            raise RuntimeError(f"the engine has stopped: {stats.error}")
        self._stall_watch.check(stats.steps, stats.running > 0, time.monotonic())
        self._numbers_watch.check(stats.without_numbers, stats.finished["stop"] + stats.finished["length"])


def _load(settings: Settings) -> "tuple[Engine, LazyGrammarCompiler]":
    """Return the engine, and the compiler of grammars over its vocabulary."""
    from mpt_serve.engine import Engine
    from mpt_serve.text.tokenizer import TextTokenizer

    _check_accelerator()
    tokenizer = TextTokenizer.from_folder(tokenizer_folder(settings.model))
    mesh = _mesh(settings)
    draft_model = settings.engine.draft_model
    engine = Engine.from_pretrained(
        model_path(settings.model),
        settings.engine_config,
        dtype=_dtype(settings, mesh),
        mesh=mesh,
        vocab_limit=tokenizer.vocab_len,
        eos_token_ids=tokenizer.eos_token_ids,
        quantization=settings.quantization,
        quantization_cache_dir=settings.quantization_cache_dir,
        draft_model=None if draft_model is None else model_path(draft_model),
    )

    def make_compiler() -> GrammarCompiler:
        token_bytes = tokenizer.text_token_bytes()[: engine.vocab_limit]
        return GrammarCompiler(token_bytes, sorted(engine.eos_token_ids))

    return engine, LazyGrammarCompiler(make_compiler)


def _check_accelerator() -> None:
    """Log a warning if this replica holds an accelerator that JAX cannot use, which would be idle unnoticed."""
    import jax
    import ray

    held = {kind: ids for kind, ids in ray.get_runtime_context().get_accelerator_ids().items() if ids}
    if held and jax.default_backend() == "cpu":
        logger.warning(
            "This replica holds %s, but JAX computes on the CPU: install mpt-serve[cuda] or mpt-serve[tpu] on its node,"
            " or request no accelerator in the Generator's ray_actor_options.",
            ", ".join(f"{kind} {', '.join(map(str, ids))}" for kind, ids in held.items()),
        )


def _dtype(settings: Settings, mesh: "Mesh | None") -> str | None:
    import jax

    from model.kernel_selection import weight_format

    if settings.dtype != "auto":
        return settings.dtype
    devices = {jax.devices()[0]} if mesh is None else set(mesh.devices.flat)
    # XLA's 16-bit products on CPUs read weights ten times slower than its 32-bit ones.
    by_xla = (
        all(device.platform == "cpu" for device in devices)
        and not weight_format(devices, kernels=settings.engine.kernels).packed
    )
    return "float32" if by_xla else None


def _mesh(settings: Settings) -> "Mesh | None":
    fsdp, tensor = settings.mesh.fsdp, settings.mesh.tensor
    if fsdp * tensor == 1:
        return None
    import jax

    from model.params.sharding import make_mesh

    return make_mesh(tensor, fsdp, jax.devices()[: fsdp * tensor])
