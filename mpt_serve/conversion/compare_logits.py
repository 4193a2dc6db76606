"""Compares two checkpoints by the logits of the same prompts, with one block of each in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from model.checkpoint.convert import Checkpoint
from model.checkpoint.load_progress import LoadProgress
from model.checkpoint.match import Source
from model.config.mpt_config import MptConfig
from model.layers.attention import dense_attention
from model.layers.forward import block, embed, logits
from model.ops.rope import rope_frequencies
from model.params.qkv import Qkv
from model.params.weights import Block, Weights, assemble_weights

__all__ = ["Comparison", "compare_logits"]

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Comparison:
    """How far the logits of a copy are from the source's, over all positions of all prompts.

    same: whether every bit is equal. divergence: the mean of KL(source || copy) in nats. same_token: the share of
    positions with the same most likely token.
    """

    same: bool
    divergence: float
    same_token: float


def compare_logits(
    source: Checkpoint, copy: Checkpoint, prompts: NDArray[np.int32], progress: bool | None = None
) -> Comparison:
    """Run prompts [B, T] of token ids through both, in float32. The numbers are read as loading reads them.

    Raises CheckpointError where a file cannot be read.
    """
    theirs, ours = (_logits(checkpoint, prompts, progress) for checkpoint in (source, copy))
    left, right = _log_softmax(theirs), _log_softmax(ours)
    divergence = float(np.mean(np.sum(np.exp(left) * (left - right), axis=-1)))
    return Comparison(
        same=theirs.tobytes() == ours.tobytes(),
        divergence=max(divergence, 0.0),
        same_token=float(np.mean(np.argmax(theirs, -1) == np.argmax(ours, -1))),
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return normalised


def _logits(checkpoint: Checkpoint, ids: NDArray[np.int32], progress: bool | None) -> NDArray[np.float32]:
    """Return what `model.layers.forward.forward` does of all weights in float32: [B, T] -> [B, T, V] float32."""
    config = replace(  # what the logits depend on, so that both checkpoints run one program
        checkpoint.config, torch_dtype=None, bos_token_id=None, eos_token_ids=(), pad_token_id=None, fused_qkv=True
    )
    one_block = replace(config, n_layers=1)
    with LoadProgress(sum(source.nbytes for source in checkpoint.sources), progress, "Comparing logits") as bar:
        others = [source for source in checkpoint.sources if not source.spec.path.startswith("blocks/")]
        outer = _read(checkpoint, others, bar)
        weights = assemble_weights(one_block, {**outer, **_read(checkpoint, _of_block(checkpoint, 0), bar)})
        x = _apply_block(config, weights.blocks[0], _embed(config, weights, jnp.asarray(ids)))
        for i in range(1, config.n_layers):
            weights = assemble_weights(one_block, {**outer, **_read(checkpoint, _of_block(checkpoint, i), bar)})
            x = jax.block_until_ready(_apply_block(config, weights.blocks[0], x))
        return np.asarray(_head(config, weights, x))


@partial(jax.jit, static_argnums=0)
def _embed(config: MptConfig, weights: Weights, ids: Array) -> Array:
    return embed(weights, config, ids, jnp.arange(ids.shape[1], dtype=jnp.int32))


@partial(jax.jit, static_argnums=0)
def _apply_block(config: MptConfig, weights: Block, x: Array) -> Array:
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)
    frequencies = None if config.rope is None else rope_frequencies(config.rope, config.head_dim, x.shape[1])

    def attend(qkv: Qkv) -> Array:
        return dense_attention(qkv.q, qkv.k, qkv.v, positions, config, qkv.slopes)

    return block(x, weights, config, positions, frequencies, attend)


@partial(jax.jit, static_argnums=0)
def _head(config: MptConfig, weights: Weights, x: Array) -> Array:
    return logits(weights, config, x)


def _of_block(checkpoint: Checkpoint, index: int) -> list[Source]:
    return [source for source in checkpoint.sources if source.spec.path.startswith(f"blocks/{index}/")]


def _read(checkpoint: Checkpoint, sources: list[Source], bar: LoadProgress) -> dict[str, Array]:
    """Return parameters in float32 by their paths, those of any block as if it were the first."""

    def arrays() -> Iterator[tuple[str, Array]]:
        for source in sources:
            kind, _, rest = source.spec.path.partition("/")
            path = f"blocks/0/{rest.partition('/')[2]}" if kind == "blocks" else source.spec.path
            yield path, jnp.asarray(checkpoint.read(source, _FLOAT32))
            bar.update(source.nbytes)

    return dict(arrays())
