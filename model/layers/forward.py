"""The MPT forward pass, top to bottom (llm-foundry 0.22 `models/mpt/modeling_mpt.py`, `models/layers/`).

Pure functions over the records of `params.weights`. `forward` runs whole sequences without a cache; `paged_forward`
runs the same `block` over a ragged batch and the paged cache. The residual stream, norms and softmax are float32.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from model.config.mpt_config import MptConfig
from model.layers.attention import dense_attention
from model.layers.linear import apply_norm, project, rotate, take
from model.ops.norm import Norm
from model.ops.rope import rope_frequencies
from model.params.head_layout import slopes_in_layout
from model.params.qkv import Qkv, split_qkv
from model.params.step_batch import TokenEmbeds
from model.params.weights import Attention, Block, Ffn, Linear, Weights

Attend = Callable[[Qkv], Array]
"""Attention of one layer -> [..., T, H, hd]; the caller decides which keys there are beside the given ones."""


def forward(weights: Weights, config: MptConfig, input_ids: Array) -> Array:
    """Return the logits of whole sequences: input_ids [B, T] int32 -> [B, T, V] float32. Causal; nothing is padded.

    Raises ValueError where learned positions end before T.
    """
    return logits(weights, config, _residual_stream(weights, config, take(weights.wte, input_ids)))


def forward_embeddings(weights: Weights, config: MptConfig, inputs_embeds: Array) -> Array:
    """Return the logits of embeddings in place of tokens, as `forward`: [B, T, d] -> [B, T, V] float32.

    They replace rows of the embedding table (llm-foundry's `inputs_embeds`); learned positions are added to them.
    """
    return logits(weights, config, _residual_stream(weights, config, inputs_embeds.astype(jnp.float32)))


def last_hidden_states(weights: Weights, config: MptConfig, input_ids: Array) -> Array:
    """Return what the output head reads of whole sequences, after the last norm: [B, T] int32 -> [B, T, d] float32.

    Raises as `forward`.
    """
    x = _residual_stream(weights, config, take(weights.wte, input_ids))
    return apply_norm(x, weights.norm_f, weights.head)


def _residual_stream(weights: Weights, config: MptConfig, x: Array) -> Array:
    """Return the output of the last block: embeddings [B, T, d] float32 -> the same, before the last norm."""
    T = x.shape[1]
    if config.learned_positions and config.max_seq_len < T:
        raise ValueError(f"{T} tokens are longer than the {config.max_seq_len} learned positions (max_seq_len)")
    positions = jnp.arange(T, dtype=jnp.int32)
    frequencies = _frequencies(config, T)

    def attend(qkv: Qkv) -> Array:
        return dense_attention(qkv.q, qkv.k, qkv.v, positions, config, qkv.slopes)

    x = _add_positions(x, weights, config, positions)
    for b in weights.blocks:
        x = block(x, b, config, positions, frequencies, attend)
    return x


def embed(
    weights: Weights, config: MptConfig, tokens: Array, positions: Array, embeds: TokenEmbeds | None = None
) -> Array:
    """Embed tokens, and positions where the model has learned ones: tokens [..., T] -> [..., T, d] float32.

    embeds: replace the rows of some tokens.
    """
    x = take(weights.wte, tokens)
    if embeds is not None:
        x = jnp.where(embeds.replaced[..., None], embeds.rows, x)
    return _add_positions(x, weights, config, positions)


def _add_positions(x: Array, weights: Weights, config: MptConfig, positions: Array) -> Array:
    if config.learned_positions and weights.wpe is not None:
        x = x + weights.wpe[positions].astype(jnp.float32)
    return x


def block(
    x: Array, b: Block, config: MptConfig, positions: Array, frequencies: np.ndarray | None, attend: Attend
) -> Array:
    """Apply one pre-norm block: x [..., T, d] float32 -> the same."""
    x = attention(x, b.norm_1, b.attn, config, positions, frequencies, attend)
    return ffn(x, b.norm_2, b.ffn, config)


def attention(
    x: Array,
    norm: Norm,
    w: Attention,
    config: MptConfig,
    positions: Array,
    frequencies: np.ndarray | None,
    attend: Attend,
) -> Array:
    """Return x + attention(norm(x)): Wqkv, clamp, split, q/k norm, RoPE, attention, out_proj, as in llm-foundry."""
    qkv = project(x, w.wqkv, norm)  # [..., T, (H + 2 Hkv) hd]
    if config.clip_qkv is not None:
        qkv = jnp.clip(qkv, -config.clip_qkv, config.clip_qkv)
    q, k, v = split_qkv(qkv, config, w.shards)
    if w.q_norm is not None and w.k_norm is not None:
        q, k = _qk_norm(q, w.q_norm, w, config), _qk_norm(k, w.k_norm, w, config)
    if config.temperature is not None:
        q = q * _temperature(positions, *config.temperature)[..., None, None]
    if frequencies is not None:
        q, k = (rotate(x, positions, frequencies, w.wqkv.weight) for x in (q, k))
    unchanged = w.q_norm is None and config.temperature is None and frequencies is None and w.shards == 1
    y = attend(Qkv(q, k, v, qkv if unchanged else None, slopes_in_layout(config, w.shards)))  # [..., T, H, hd]
    return project(y.reshape(*y.shape[:-2], -1), w.out_proj, plus=x)


def ffn(x: Array, norm: Norm, w: Ffn, config: MptConfig) -> Array:
    """Return x + mlp(norm(x)): mptmlp is down(act(up(x))), mptglu is down(act(gate(x)) * up(x))."""
    if w.gate_proj is None:
        hidden = project(x, w.up_proj, norm, config.activation)
    else:
        hidden = project(x, w.gate_proj, norm, config.activation, times=project(x, w.up_proj, norm))
    return project(hidden, w.down_proj, plus=x)


def logits(weights: Weights, config: MptConfig, x: Array) -> Array:
    """Apply the last norm and the output head: x [..., d] -> [..., V] float32."""
    return scaled_logits(project(x, Linear(weights.head), weights.norm_f), config)


def scaled_logits(y: Array, config: MptConfig) -> Array:
    """Return the logits of the head's product [..., V]: scaled first, soft-capped last."""
    y = y * config.logit_scale
    cap = config.final_logit_softcap
    return y if cap is None else cap * jnp.tanh(y / cap)


def _qk_norm(x: Array, norm: Norm, w: Attention, config: MptConfig) -> Array:
    """Normalise x [..., H, hd] over all heads together ("ln") or within each head ("gn")."""
    runs = x if config.qk_norm == "gn" else x.reshape(*x.shape[:-2], -1)
    return apply_norm(runs, norm, w.wqkv.weight).reshape(x.shape)


def _temperature(positions: Array, floor_scale: float, attn_scale: float) -> Array:
    """Return the factor on the queries, which grows with their position: [..., T] int32 -> [..., T] float32."""
    return 1.0 + attn_scale * jnp.log(jnp.floor((positions + 1.0) / floor_scale) + 1.0)


def _frequencies(config: MptConfig, length: int) -> np.ndarray | None:
    return None if config.rope is None else rope_frequencies(config.rope, config.head_dim, length)
