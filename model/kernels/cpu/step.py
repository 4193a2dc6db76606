"""A whole step by one native kernel: all blocks, the last norm and the head of `layers.paged_forward` on a CPU.

The same computation as by the kernels for linear layers and attention, equal to the last bit, without the time between
their calls: its threads stay together from the first layer to the head.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from model.config.mpt_config import MptConfig
from model.kernels.cpu.attention import batch_arguments, in_place, score_attributes
from model.kernels.cpu.library import kernel_call
from model.kernels.cpu.linear import activation_number, fused_activation, norm_kind, vector
from model.ops.norm import Norm
from model.ops.rope import cached_frequencies
from model.params.kv_cache import KvCache
from model.params.packed_matrix import PackedMatrix
from model.params.step_batch import StepBatch
from model.params.weights import Block, Linear, Weights


def computes_whole_step(weights: Weights, config: MptConfig) -> bool:
    """Return whether the kernel computes this model: packed weights, blocks that are alike, nothing that XLA adds."""
    matrices = [linear.weight for b in weights.blocks for linear in _linears(b)]
    packed = all(isinstance(matrix, PackedMatrix) for matrix in (*matrices, weights.head))
    alike = len({jax.tree.structure(b) for b in weights.blocks}) == 1
    by_xla = config.temperature is not None or fused_activation(config.activation) is None
    return packed and alike and not by_xla and weights.blocks[0].attn.shards == 1


def whole_step(
    x: Array, weights: Weights, config: MptConfig, cache: KvCache, batch: StepBatch, sampled: Array
) -> tuple[Array, Array, KvCache]:
    """Compute what `layers.paged_forward.WholeStep` describes, of a model that `computes_whole_step`.

    The cache is updated in place if donated.
    """
    caches, treedef = jax.tree.flatten(cache)
    logits = jax.ShapeDtypeStruct((sampled.shape[0], config.vocab_size), jnp.float32)
    hidden_states, product, *updated = kernel_call(
        "mpt_step",
        [*in_place([x]), logits, *in_place(caches)],
        input_output_aliases={0: 0} | {8 + i: 2 + i for i in range(len(caches))},
    )(
        x,
        batch.positions,
        *batch_arguments(batch),
        sampled,
        *caches,
        *model_arguments(weights),
        **model_attributes(weights, config, cache),
    )
    return hidden_states, product, jax.tree.unflatten(treedef, updated)


def model_arguments(weights: Weights) -> list[Array]:
    """Return the weights behind the embedding in the kernel's order."""
    blocks = [array for b in weights.blocks for array in _block_arguments(b)]
    return [*blocks, *_norm_arguments(weights.norm_f), *linear_arguments(Linear(weights.head))]


def model_attributes(weights: Weights, config: MptConfig, cache: KvCache) -> dict[str, object]:
    """Return what all blocks have in common; `ModelAttributes` in src/step_ffi.cc."""
    b = weights.blocks[0]
    q_norm = b.attn.q_norm
    frequencies = cached_frequencies(config.rope, config.head_dim)
    weight = b.attn.wqkv.weight
    assert isinstance(weight, PackedMatrix)
    return {
        **score_attributes(config),
        "frequencies": np.zeros(0, np.float32) if frequencies is None else frequencies,
        "layers": np.int64(config.n_layers),
        "width": np.int64(config.d_model),
        "vocab": np.int64(config.vocab_size),
        "heads": np.int64(config.n_heads),
        "ffn_width": np.int64(config.ffn_hidden_size),
        "group": np.int64(weight.group),
        "activation": activation_number(fused_activation(config.activation) or "none"),
        "clip_qkv": np.float32(config.clip_qkv or 0),
        "norm": norm_kind(b.norm_1),
        "norm_bias": b.norm_1.bias is not None,
        "eps": np.float32(b.norm_1.eps),
        "qk_norm": norm_kind(q_norm),
        "qk_norm_bias": q_norm is not None and q_norm.bias is not None,
        "qk_eps": np.float32(0 if q_norm is None else q_norm.eps),
        "norms_each_head": config.qk_norm == "gn",
        "qkv_bias": b.attn.wqkv.bias is not None,
        "bias": b.attn.out_proj.bias is not None,
        "gated": b.ffn.gate_proj is not None,
        "key_norms": cache.layers[0].key_norms is not None,
    }


def _linears(b: Block) -> list[Linear]:
    linears = [b.attn.wqkv, b.attn.out_proj, b.ffn.up_proj, b.ffn.down_proj]
    return linears if b.ffn.gate_proj is None else [*linears, b.ffn.gate_proj]


def _block_arguments(b: Block) -> list[Array]:
    """Return a block's arrays in the kernel's order."""
    wqkv, out_proj, *ffn = (linear_arguments(linear) for linear in _linears(b))
    qk_norms = [array for norm in (b.attn.q_norm, b.attn.k_norm) for array in _norm_arguments(norm)]
    norms = _norm_arguments(b.norm_1), _norm_arguments(b.norm_2)
    return [*norms[0], *wqkv, *out_proj, *qk_norms, *norms[1], *(array for arrays in ffn for array in arrays)]


def linear_arguments(linear: Linear) -> list[Array]:
    """Return the arrays of a layer with packed weights in the kernel's order."""
    weight = linear.weight
    assert isinstance(weight, PackedMatrix)
    return [a for a in (weight.data, weight.row_scale, weight.group_scale, vector(linear.bias)) if a is not None]


def _norm_arguments(norm: Norm | None) -> list[Array]:
    return [] if norm is None else [a for a in (vector(norm.weight), vector(norm.bias)) if a is not None]
