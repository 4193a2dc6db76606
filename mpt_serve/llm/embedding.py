"""Embeddings: the model's hidden states of prompts, pooled by the engine."""

import queue
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpt_serve.engine.engine import Engine
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import EngineClosedError, MptServeError
from mpt_serve.llm.prompts import Prompt

__all__ = ["Embedding", "embed_prompts"]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What the model makes of one prompt.

    prompt_ids: the ids that the model read.
    values: [d] float32, or with pooling 'none' [len(prompt_ids), d]; d is the model's hidden size.
    num_cached_tokens: prompt tokens whose keys and values were reused from an earlier request.
    """

    prompt_ids: tuple[int, ...]
    values: npt.NDArray[np.float32]
    num_cached_tokens: int = 0


def embed_prompts(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams) -> list[Embedding]:
    """Return the embeddings of prompts, which run together; params: with pooling.

    Raises as `Engine.submit`, `EngineClosedError` when the engine is closed or fails meanwhile, and `MptServeError`
    for a model whose hidden states are not finite. Whatever is raised, nothing keeps running.
    """
    deltas: queue.SimpleQueue[tuple[int, Delta]] = queue.SimpleQueue()
    batch = secrets.token_hex(8)
    names = [f"{batch}-{i}" for i in range(len(prompts))]  # known before a submission can be interrupted
    embeddings: dict[int, Embedding] = {}
    try:
        for i, prompt in enumerate(prompts):
            engine.submit(prompt.ids, params, _listener(deltas, i), names[i], embeds=prompt.embeds)
        while len(embeddings) < len(prompts):
            i, delta = deltas.get()
            embeddings[i] = _embedding(engine, prompts[i].ids, params, delta)
    finally:
        for name in names:
            engine.cancel(name)
    return [embeddings[i] for i in range(len(prompts))]


def _listener(deltas: "queue.SimpleQueue[tuple[int, Delta]]", prompt_index: int) -> Callable[[Delta], None]:
    """Return what queues the one delta of a prompt."""
    return lambda delta: deltas.put((prompt_index, delta))


def _embedding(engine: Engine, prompt: Sequence[int], params: SamplingParams, delta: Delta) -> Embedding:
    if delta.hidden_states is None:
        if delta.finish_reason == "cancelled" or engine.stats().error is not None:
            raise EngineClosedError(engine.stats().error or "the engine was closed")
        raise MptServeError(delta.message)
    values = np.frombuffer(delta.hidden_states, "<f4").astype(np.float32)  # a copy that may be written to
    if params.pooling == "none":
        values = values.reshape(len(prompt), -1)
    return Embedding(tuple(prompt), values, delta.num_cached_tokens)
