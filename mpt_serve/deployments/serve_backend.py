"""The backend of the HTTP endpoints, over handles to the other deployments."""

from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import replace
from time import perf_counter
from typing import Any

from ray.serve.handle import DeploymentHandle

from mpt_serve.deployments.admission import Admission, Reservation
from mpt_serve.deployments.dispatch_queue import DispatchQueue
from mpt_serve.deployments.drain import Drain
from mpt_serve.deployments.failover import FailoverStream
from mpt_serve.deployments.readiness import ReplicaWatch, Waiting
from mpt_serve.deployments.replica_client import ReplicaClient
from mpt_serve.deployments.replica_updates import ReplicaUpdates
from mpt_serve.deployments.replicas import WatchedReplicas
from mpt_serve.deployments.signs_of_life import SignsOfLife
from mpt_serve.deployments.tokenizer_client import TokenizerClient
from mpt_serve.deployments.version import Version
from mpt_serve.deployments.watchdog import Watchdog
from mpt_serve.engine.request import Delta
from mpt_serve.openai.backend import GenerationRequest, ModelInfo, OnDelta, Readiness
from mpt_serve.openai.errors import NotReadyError
from mpt_serve.openai.server_metrics import ServerMetrics
from mpt_serve.text.chat_template import Message
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["ServeBackend"]

_BACKGROUND_PART = 2  # one of this many may be in the background, beside all others
_POOLED_PART = 4  # one of this many requests with the Generators may be for hidden states


class ServeBackend:
    """Implements `mpt_serve.openai.backend.Backend`.

    text: the same tokenizer that the Tokenizer deployment has, for the way back from ids.
    tokenizer, generator: handles of these deployments. updates: their replicas. version: of the calling replica.
    waiting: bounds of waiting for replicas that are being replaced.
    reply_timeout_s: how long a replica may take to reply before it is replaced.
    stream_interval_s: between two pieces of a stream; see `DeltaReceiver`.
    """

    def __init__(
        self,
        model: ModelInfo,
        text: TextTokenizer,
        tokenizer: DeploymentHandle,
        generator: DeploymentHandle,
        admission: Admission,
        updates: ReplicaUpdates,
        version: Version,
        waiting: Waiting,
        reply_timeout_s: float = 10.0,
        stream_interval_s: float = 0.0,
    ) -> None:
        self.model = model
        self.tokenizer = text
        self.metrics = ServerMetrics()
        self.queue = DispatchQueue(capacity=1)  # until the watch has seen the replicas
        self.pooled_queue = DispatchQueue(capacity=1)  # of requests for hidden states, before that one
        self.background_queue = DispatchQueue(capacity=1)  # of requests that nobody waits for
        self._generator_replicas = ReplicaClient(generator, stream_interval_s)
        receiver = self._generator_replicas.receiver
        self.signs = SignsOfLife(receiver)
        self.watch = ReplicaWatch(generator, updates, self.signs, version, waiting, self._update_model, self.resize)
        self._replicas = WatchedReplicas("Generator", generator, updates, receiver, self.signs)
        self.watchdog = Watchdog(self._replicas, reply_timeout_s)
        tokenizers = WatchedReplicas("Tokenizer", tokenizer, updates, receiver, self.signs)
        self.tokenizer_watchdog = Watchdog(tokenizers, reply_timeout_s)
        self._tokenizer_replicas = TokenizerClient(
            tokenizer,
            self.tokenizer_watchdog,
            lambda: tokenizers.taking_texts(self.watch.usable("Tokenizer")),
            receiver.calls,
        )
        self.drain = Drain()
        self._admission = admission

    def listen(self, host: str) -> None:
        """Take the Generators' deltas on a separate socket at `host`, an address of this node."""
        self._generator_replicas.receiver.start(host)

    async def encode(self, text: str, add_special_tokens: bool, parse_special_tokens: bool = True) -> Sequence[int]:
        """Return the text's ids; see `TextTokenizer.encode`."""
        return await self._tokenizer_replicas.encode(text, add_special_tokens, parse_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        add_special_tokens: bool = False,
    ) -> Sequence[int]:
        """Return the ids of the rendered conversation. Raises ChatTemplateError."""
        ending = (add_generation_prompt, continue_final_message)
        return await self._tokenizer_replicas.encode_chat(messages, *ending, tools, add_special_tokens)

    def retry_after_s(self) -> float | None:
        """Return None while a new request would be counted, or else the seconds after which to send it again."""
        return self._admission.retry_after_s() if self._admission.full else None

    def load(self) -> int:
        """Return the number of choices that wait or run."""
        return self._admission.requests

    def reserve(self) -> AbstractContextManager[Reservation]:
        """Count one HTTP request towards the capacity while entered. Raises NotReadyError if that is exhausted."""
        return self._admission.reserve()

    async def generate(
        self, request: GenerationRequest, on_delta: OnDelta, stopped_choices: Set[int] = frozenset()
    ) -> None:
        """Generate on the replicas, moving to others when one is lost. See `Backend.generate`."""

        async def run_segment(own: GenerationRequest, generated: tuple[int, ...], take: OnDelta) -> None:
            queue = self.background_queue if own.params.background else self.queue
            waits_since = perf_counter()
            async with (
                self._pooled_slot(own),
                queue.slot(
                    own.params.priority, bool(generated), own.client, own.params.n, len(own.ids) + len(generated)
                ) as slot,
                self.watchdog.watch(own.request_id) as watched,
            ):
                if not own.params.background:
                    self.metrics.observe("queue_time", perf_counter() - waits_since)
                if self.watch.model_was_replaced:  # its ids may mean other text
                    raise NotReadyError("Another model is being deployed.", code="loading", retry_after_s=1)

                def hear(delta: Delta) -> None:
                    watched.hear()
                    slot.charge(len(delta.token_ids))
                    take(delta)

                params = replace(own.params, expedited=True) if slot.expedited else own.params
                named = replace(own, request_id=watched.name, params=params)
                await self._generator_replicas.generate(named, generated, hear, stopped_choices)

        async with self.drain.request():
            await FailoverStream(run_segment, request, on_delta, stopped_choices, self.metrics).run()

    def resize(self, capacity: int) -> None:
        """Set the number of requests that may be with the Generators at the same time.

        Those for hidden states get a quarter: beside streams they take their time, and would fill all of it. Those in
        the background have their own: the engine prefers all others.
        """
        self.queue.resize(capacity)
        self.pooled_queue.resize(max(1, capacity // _POOLED_PART))
        self.background_queue.resize(max(1, capacity // _BACKGROUND_PART))

    @property
    def num_waiting(self) -> int:
        """Return how many requests wait to be dispatched."""
        return self.queue.num_waiting + self.pooled_queue.num_waiting

    def _pooled_slot(self, request: GenerationRequest) -> AbstractAsyncContextManager[object]:
        if request.params.pooling is None or request.params.background:
            return nullcontext()
        return self.pooled_queue.slot(
            request.params.priority, begun=False, client=request.client, prompt_tokens=len(request.ids)
        )

    async def readiness(self) -> Readiness:
        """Return whether a request would be served now."""
        return self.drain.readiness or self.watch.readiness

    async def wait_ready(self) -> Readiness:
        """Return the readiness, after a bounded wait if the last replicas are being replaced."""
        return self.drain.readiness or await self.watch.wait_ready()

    async def stats(self) -> list[dict[str, Any]]:
        """Return the engine's counters of every Generator replica that replies in time."""
        return await self._replicas.stats()

    def _update_model(self, stats: dict[str, object]) -> None:
        max_model_len, hidden_size = stats["max_model_len"], stats["hidden_size"]
        assert isinstance(max_model_len, int)
        assert isinstance(hidden_size, int)
        self.model = replace(self.model, max_model_len=max_model_len, hidden_size=hidden_size)
