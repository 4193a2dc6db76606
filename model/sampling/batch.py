"""The records that sampling works on, beside `params.sampling_batch`: per-slot state, and kernels."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.sharding import Sharding

from model.params.sampling_batch import SamplingBatch

PROMPT = 2**30
"""Added to the count of an id that the prompt has; the rest of the count is how often the id was generated."""


class SamplerState(NamedTuple):
    """What the device remembers of each slot from step to step."""

    last_tokens: Array  # [slots] int32, sampled last
    counts: Array  # [slots, V] int32, times generated, + PROMPT where the prompt has the id
    bias: Array  # [slots, V] float32


class SamplingKernels(NamedTuple):
    """Kernels that replace `sampler.choose_ids` and `logprobs.log_probabilities`."""

    # (logits [S, V], batch, masks [S, W], counts [slots, V], bias [slots, V], uniform [S], vocab_limit) -> ids [S]
    choose_ids: Callable[[Array, SamplingBatch, Array, Array, Array, Array, int], Array]
    # (logits [S, V], ids [S], num_logprobs [S], vocab_limit, max_logprobs) -> log probability and rank [S], and the
    # most likely ids and their log probabilities [S, max_logprobs]
    log_probabilities: Callable[[Array, Array, Array, int, int], tuple[Array, Array, Array, Array]]


def init_sampler_state(slots: int, vocab_size: int, sharding: Sharding | None = None) -> SamplerState:
    """Return a state of zeros."""
    return SamplerState(
        jnp.zeros(slots, jnp.int32, device=sharding),
        jnp.zeros((slots, vocab_size), jnp.int32, device=sharding),
        jnp.zeros((slots, vocab_size), jnp.float32, device=sharding),
    )
