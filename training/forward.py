"""The product's forward pass for rows of several documents, each of which reads nothing of those before it.

A prompt is the beginning of a sequence when the model serves it, so it is one in training too. ALiBi sees distances
alone, so a document's place in its row does not matter. A tile of queries reads no key after it, which halves the
scores of long rows. The native step computes the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from model.config.mpt_config import MptConfig
from model.layers.attention import score
from model.layers.forward import block, embed, logits
from model.params.qkv import Qkv
from model.params.weights import Weights
from training.dialogue import ENDOFTEXT
from training.tokenizer import SPECIAL_TOKENS

_TILE = 64
_NEVER = -1e30


def document_numbers(tokens: Array, end_of_text: int) -> Array:
    """Return each token's document, counted from 0: [B, T] -> [B, T] int32. The end-of-text mark ends a document."""
    ends = (tokens == end_of_text).astype(jnp.int32)
    return jnp.cumsum(ends, axis=1) - ends


def causal_attention(qkv: Qkv, config: MptConfig, documents: Array) -> Array:
    """Attend causally inside of documents [B, T]: q [B, T, H, hd], k and v [B, T, Hkv, hd] -> [B, T, H, hd]."""
    B, T, H, hd = qkv.q.shape
    positions = jnp.arange(T, dtype=jnp.int32)
    q = qkv.q.reshape(B, T, config.kv_n_heads, -1, hd)
    tiles = []
    for start in range(0, T, _TILE):
        end = min(start + _TILE, T)
        scores = score(q[:, start:end], qkv.k[:, :end], positions[start:end], positions[:end], config, qkv.slopes)
        same = documents[:, start:end, None] == documents[:, None, :end]  # [B, t, S]
        scores = jnp.where(same[:, None, None], scores, _NEVER)
        tiles.append(jnp.einsum("bhgts,bshd->bthgd", jax.nn.softmax(scores, axis=-1), qkv.v[:, :end]))
    return jnp.concatenate(tiles, axis=1).reshape(B, T, H, hd)


def forward(weights: Weights, config: MptConfig, tokens: Array) -> Array:
    """Return the logits of every document as `model.layers.forward.forward` does, of models without RoPE.

    tokens [B, T] -> [B, T, V] float32.
    """
    documents = document_numbers(tokens, SPECIAL_TOKENS.index(ENDOFTEXT))
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    x = embed(weights, config, tokens, positions)
    for b in weights.blocks:
        x = block(x, b, config, positions, None, lambda qkv: causal_attention(qkv, config, documents))
    return logits(weights, config, x)
