"""The Generator deployment: one model on its device, ids in, ids out. The only process that imports JAX."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.exceptions import RayServeException

from mpt_serve.configuration.model_folder import model_path, tokenizer_folder
from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments.delta_mailbox import DeltaMailbox
from mpt_serve.deployments.logs import log_through_serve

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from mpt_serve.engine import Engine
    from mpt_serve.engine.request import Delta
    from mpt_serve.engine.sampling_params import SamplingParams

__all__ = ["Generator", "StallWatch"]

logger = logging.getLogger(__name__)


class StallWatch:
    """Notices an engine that has work and takes no steps."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._steps = -1
        self._since = 0.0

    def check(self, steps: int, busy: bool, now: float) -> None:
        """Look at the engine at time `now` (seconds). Raises RuntimeError when it has stood still for too long."""
        if steps != self._steps or not busy:
            self._steps, self._since = steps, now
        elif now - self._since > self._limit_s:
            raise RuntimeError(f"the engine has work and took no step for {now - self._since:.0f} s")


class Generator:
    """Holds an Engine, whose own thread runs the device, and streams what it says."""

    def __init__(self, settings: Settings) -> None:
        log_through_serve()
        self._name = _replica_name()
        self._engine = _load_engine(settings)
        self._stall_watch = StallWatch(settings.engine.stall_timeout_s)
        self._mailbox: DeltaMailbox | None = None

    async def generate(
        self, prompt_ids: Sequence[int], params: "SamplingParams", request_id: str, generated: Sequence[int] = ()
    ) -> "AsyncIterator[Delta]":
        """Yield the news about the request's choices; closing the iterator ends them in the engine.

        generated: ids that a request of one choice has already; it goes on after them.
        Raises RequestError for a request the engine refuses, EngineClosedError when it has stopped.
        """
        if self._mailbox is None:
            self._mailbox = DeltaMailbox(asyncio.get_running_loop())
        stream = self._mailbox.stream(params.n)
        submit = partial(self._engine.submit, prompt_ids, params, stream.post, request_id, generated=generated)
        if params.guide is None:
            submit()
        else:  # which may have to be compiled
            await self._submit_in_thread(submit, request_id)
        try:
            async for delta in stream:
                yield delta
        finally:
            self._engine.cancel(request_id)

    async def end_choice(self, request_id: str, index: int) -> None:
        """End a choice at its stop string, here or, where another replica has it, nowhere; the other choices go on."""
        self._engine.cancel(request_id, index, "stop")

    async def _submit_in_thread(self, submit: Callable[[], str], request_id: str) -> None:
        submitted = asyncio.get_running_loop().run_in_executor(None, submit)

        def withdraw(_: asyncio.Future[str]) -> None:
            if submitted.exception() is None:
                self._engine.cancel(request_id)

        try:
            await asyncio.shield(submitted)
        except asyncio.CancelledError:  # the thread cannot be stopped; what it submits can
            submitted.add_done_callback(withdraw)
            raise

    async def stats(self) -> dict[str, Any]:
        """Return the engine's `EngineStats` as a dictionary, readable without JAX, with the name of this `replica`."""
        return {"replica": self._name, **dataclasses.asdict(self._engine.stats())}

    async def check_health(self) -> None:
        """Raise when the engine has stopped or stalled: Serve then replaces this replica."""
        stats = self._engine.stats()
        if stats.error is not None:
            raise RuntimeError(f"the engine has stopped: {stats.error}")
        self._stall_watch.check(stats.steps, stats.running > 0, time.monotonic())


def _replica_name() -> str:
    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except RayServeException:  # a Generator without Serve around it
        return "local"


def _load_engine(settings: Settings) -> "Engine":
    from mpt_serve.engine import Engine
    from mpt_serve.text.tokenizer import TextTokenizer

    _check_accelerator()
    tokenizer = TextTokenizer.from_folder(tokenizer_folder(settings.model))
    mesh = _mesh(settings)
    draft_model = settings.engine.draft_model
    return Engine.from_pretrained(
        model_path(settings.model),
        settings.engine_config,
        dtype=_dtype(settings, mesh),
        mesh=mesh,
        quantization=settings.quantization,
        quantization_cache_dir=settings.quantization_cache_dir,
        draft_model=None if draft_model is None else model_path(draft_model),
        tokenizer=tokenizer,
    )


def _check_accelerator() -> None:
    """Warn where this replica holds an accelerator that JAX cannot use: it would stand idle unnoticed."""
    import jax
    import ray

    held = {kind: ids for kind, ids in ray.get_runtime_context().get_accelerator_ids().items() if ids}
    if held and jax.default_backend() == "cpu":
        logger.warning(
            "This replica holds %s, but JAX computes on the CPU: install mpt-serve[cuda] or mpt-serve[tpu] on its node"
            " (or ask for no accelerator in the Generator's ray_actor_options).",
            ", ".join(f"{kind} {', '.join(map(str, ids))}" for kind, ids in held.items()),
        )


def _dtype(settings: Settings, mesh: "Mesh | None") -> str | None:
    import jax

    from model.kernel_selection import weight_format

    if settings.dtype != "auto":
        return settings.dtype
    devices = {jax.devices()[0]} if mesh is None else set(mesh.devices.flat)
    # Where XLA computes on a CPU: its 16-bit products read weights ten times slower than its 32-bit ones.
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
