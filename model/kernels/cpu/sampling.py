"""Sampling by the native kernels: `sampling.sampler.choose_ids` and `sampling.logprobs.log_probabilities` on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from model.kernels.cpu.library import kernel_call
from model.params.sampling_batch import SamplingBatch


def choose_ids(
    logits: Array, batch: SamplingBatch, masks: Array, counts: Array, bias: Array, uniform: Array, vocab_limit: int
) -> Array:
    """Choose one id per row of logits [S, V] float32 -> [S] int32, all below vocab_limit.

    masks [S, ceil(V / 32)] uint32; counts and bias [slots, V] int32 and float32; uniform [S] in [0, 1) are the random
    numbers. A row's result does not depend on the other rows, to the last bit.
    """
    call = kernel_call("mpt_sample", jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32))
    filters = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    changes = (batch.repetition, batch.presence, batch.frequency, batch.biased, batch.masked)
    rows = (batch.slot, *filters, *changes, uniform)
    return call(logits, masks, counts, bias, *rows, limit=np.int64(vocab_limit))


def log_probabilities(
    logits: Array, ids: Array, num_logprobs: Array, vocab_limit: int, max_logprobs: int
) -> tuple[Array, Array, Array, Array]:
    """Return log probabilities of ids [S] int32 under logits [S, V] float32, and the most likely ids of each row.

    -> log probability [S] float32, rank [S] int32; of up to num_logprobs [S] int32 most likely ids the ids themselves
    [S, max_logprobs] int32 and their log probabilities [S, max_logprobs] float32. A row's result does not depend on the
    other rows.
    """
    S = logits.shape[0]
    shapes = ((S,), jnp.float32), ((S,), jnp.int32), ((S, max_logprobs), jnp.int32), ((S, max_logprobs), jnp.float32)
    call = kernel_call("mpt_log_probabilities", tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    found: tuple[Array, Array, Array, Array] = call(logits, ids, num_logprobs, limit=np.int64(vocab_limit))
    return found
