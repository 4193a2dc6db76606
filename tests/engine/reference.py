"""What the engine must generate: exact distributions in float64, and the full forward pass without a cache."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.config.mpt_config import MptConfig
from model.layers.forward import forward
from model.params.weights import Weights
from model.sampling.sampler import _uniform
from mpt_serve.engine import SamplingParams

_forward = jax.jit(forward, static_argnums=1)


def distribution(
    logits: np.ndarray,
    vocab_limit: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    **changes: Any,
) -> np.ndarray:
    """The exact distribution [V], by sorting, in float64 (ids tie when float32 cannot tell them apart).

    changes: keywords of `changed_logits`.
    """
    logits = changed_logits(logits, vocab_limit, **changes).astype(np.float32)
    scaled = ((logits - logits.max()) / np.float32(temperature)).astype(np.float64)
    weights = np.exp(scaled)
    weights[weights < min_p] = 0
    if 0 < top_k < len(weights):
        weights[scaled < np.sort(scaled)[-top_k]] = 0
    probabilities = weights / weights.sum()
    if top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        last = order[np.searchsorted(np.cumsum(probabilities[order]), top_p)]
        probabilities[probabilities < probabilities[last]] = 0
    return probabilities / probabilities.sum()


def changed_logits(
    logits: np.ndarray,
    vocab_limit: int,
    allowed: Sequence[int] | None = None,
    bias: Mapping[int, float] | None = None,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> np.ndarray:
    """What greedy decoding takes the largest of: logits [V] with mask, bias and penalties, in float64."""
    possible = np.zeros(len(logits), bool)
    possible[: vocab_limit if allowed is None else 0] = True
    possible[[i for i in allowed or () if i < vocab_limit]] = True
    changed = np.where(possible, logits.astype(np.float64), -np.inf)
    for token, value in (bias or {}).items():
        changed[token] += value
    for token in {*prompt, *generated}:
        changed[token] *= 1 / repetition if changed[token] > 0 else repetition
    for token in generated:
        changed[token] -= frequency
    for token in set(generated):
        changed[token] -= presence
    return changed


def allowed_ids(
    params: SamplingParams, vocab_limit: int, stop_ids: Collection[int], generated: Sequence[int]
) -> list[int]:
    """The ids that may come next, by the request's lists alone."""
    banned = {word[-1] for word in params.bad_words if tuple(generated[len(generated) - len(word) + 1 :]) == word[:-1]}
    if len(generated) < params.min_tokens:
        banned |= {*stop_ids, *params.stop_token_ids}
    allowed = range(vocab_limit) if params.allowed_token_ids is None else params.allowed_token_ids
    return [i for i in allowed if i not in banned]


def full_logits(weights: Weights, config: MptConfig, ids: Sequence[int]) -> np.ndarray:
    """Logits [len(ids), V] by the full forward pass, in one program for all lengths."""
    padded = np.zeros((1, config.max_seq_len), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(_forward(weights, config, padded))[0, : len(ids)]


def log_softmax(weights: Weights, config: MptConfig, ids: Sequence[int]) -> np.ndarray:
    """Log probabilities [len(ids), V] of what follows each id, by the full forward pass, in float64."""
    logits = full_logits(weights, config, ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def check_generated(
    weights: Weights,
    config: MptConfig,
    vocab_limit: int,
    prompt: Sequence[int],
    params: SamplingParams,
    generated: Sequence[int],
    stop_ids: Collection[int] = (),
) -> None:
    """Each id is the one that the full forward pass and the request's seed give, as far as float32 can tell.

    A greedy id may tie with the best one; a sampled one may be next to its draw, at the border between two ids.
    """
    logits = full_logits(weights, config, [*prompt, *generated])
    for position, chosen in enumerate(generated, start=len(prompt)):
        row = logits[position - 1]
        before = generated[: position - len(prompt)]
        changes = {
            "allowed": allowed_ids(params, vocab_limit, stop_ids, before),
            "bias": dict(params.biases),
            "prompt": prompt,
            "generated": before,
            "repetition": params.repetition_penalty,
            "presence": params.presence_penalty,
            "frequency": params.frequency_penalty,
        }
        if params.greedy:
            row = changed_logits(row, vocab_limit, **changes)
            assert row[chosen] > row.max() - 1e-4, f"position {position}: {chosen} is not the best id"
            continue
        filters = params.temperature, params.top_k, params.top_p, params.min_p
        probabilities = distribution(row, vocab_limit, *filters, **changes)
        seed = (params.seed or 0) % 2**64
        words = jnp.array([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32)
        drawn = float(_uniform(words, jnp.int32(params.choice_index), jnp.int32(position)))
        stop = probabilities[: chosen + 1].sum()
        start = stop - probabilities[chosen]
        assert start - 1e-5 <= drawn < stop + 1e-5, f"position {position}: {chosen} is not what {drawn} draws"
