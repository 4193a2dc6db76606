"""The CPU kernels as JAX functions. Each docstring names the readable reference that defines the function."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from model.config.mpt_config import MptConfig
from model.kernels.cpu.library import kernel_library
from model.ops.activations import Activation
from model.ops.alibi import alibi_slopes
from model.ops.norm import Norm
from model.params.kv_cache import LayerCache
from model.params.packed_matrix import PackedMatrix

if TYPE_CHECKING:
    from model.layers.forward import Qkv
    from model.layers.paged_forward import StepBatch

__all__ = ["available", "choose_ids", "linear", "log_probabilities", "norm", "paged_attention"]

# In the order of the enumerations in src/kernels.h.
_FORMATS = ("float32", "bfloat16", "int8", "int4")
_ACTIVATIONS = ("none", "gelu", "gelu_tanh", "silu", "relu", "quick_gelu")
_COMBINATIONS = ("none", "add", "multiply")
_FUSED = {
    Activation("gelu"): "gelu",
    Activation("gelu", (("approximate", "none"),)): "gelu",
    Activation("gelu", (("approximate", "tanh"),)): "gelu_tanh",
    Activation("silu"): "silu",
    Activation("relu"): "relu",
    Activation("quick_gelu"): "quick_gelu",
}


def available() -> bool:
    """True where the kernels can run; asked on the host, before a program is traced."""
    return kernel_library() is not None


def _call(target: str, result: Any, input_output_aliases: dict[int, int] | None = None) -> Callable[..., Any]:
    """`jax.ffi.ffi_call` of a kernel, which is registered once the library is loaded."""
    assert available(), f"{target} without the native kernels"
    return jax.ffi.ffi_call(target, result, input_output_aliases=input_output_aliases)


def linear(
    x: Array,
    weight: PackedMatrix,
    bias: Array | None = None,
    norm: Norm | None = None,
    activation: Activation | None = None,
    times: Array | None = None,
    plus: Array | None = None,
) -> Array:
    """`model.layers.linear.project` over a packed matrix: x [..., K] float32 -> [..., N] float32.

    Inputs are rounded to bfloat16 where the weights are, and quantised where the weights are: per row and 256 inputs
    (int8) or group (int4), to whole numbers from -127 to 127. A row's result does not depend on the other rows.
    """
    lead, (N, K) = x.shape[:-1], weight.shape
    fused = _FUSED.get(activation) if activation is not None else "none"
    other = times if times is not None else plus
    combination = "none" if other is None or fused is None else "add" if times is None else "multiply"
    norm_arguments, norm_attributes = _norm_arguments(norm)
    arguments = [*norm_arguments, weight.row_scale, weight.group_scale, _vector(bias)]
    if combination != "none" and other is not None:
        arguments.append(other.reshape(-1, N))
    arguments = [x.reshape(-1, K), weight.data, *(a for a in arguments if a is not None)]
    y = _call(
        "mpt_linear",
        jax.ShapeDtypeStruct((math.prod(lead), N), jnp.float32),
        input_output_aliases=None if combination == "none" else {len(arguments) - 1: 0},
    )(
        *arguments,
        **norm_attributes,
        format=np.int32(_FORMATS.index(weight.format)),
        bias=bias is not None,
        activation=np.int32(_ACTIVATIONS.index(fused or "none")),
        combine=np.int32(_COMBINATIONS.index(combination)),
        group=np.int64(weight.group),
    ).reshape(*lead, N)
    if fused is None and activation is not None:  # one that no kernel has
        y = activation(y)
        y = y if times is None else y * times
        y = y if plus is None else y + plus
    return y


def norm(x: Array, norm: Norm) -> Array:
    """`model.ops.norm.normalise`: x [..., K] float32 -> the same; a row's result does not depend on the other rows."""
    vectors, attributes = _norm_arguments(norm)
    arguments = [vector for vector in vectors if vector is not None]
    call = _call("mpt_norm", jax.ShapeDtypeStruct(x.shape, jnp.float32))
    return call(x, *arguments, **attributes)


def paged_attention(
    qkv: "Qkv", layer: LayerCache, batch: "StepBatch", config: MptConfig, *, horizons: bool = True
) -> tuple[Array, LayerCache]:
    """Writes a step's keys and values, then attends over the cache (`model.layers.attention.paged_attention`).

    Pools of float32, bfloat16 or int8; the cache is updated in place if donated -> ([T, H, hd] float32, the cache).
    A query's result depends on its own sequence alone, to the last bit. `horizons` False reads every key
    (`model.params.alibi_horizon`), for comparison.
    """
    T, H, hd = qkv.q.shape
    fused = qkv.fused
    if fused is None:
        fused = jnp.concatenate([part.reshape(T, -1) for part in (qkv.q, qkv.k, qkv.v)], axis=1)
    slopes = alibi_slopes(H, config.alibi_bias_max) if config.alibi else np.zeros(0, np.float32)
    slopes = slopes if qkv.slopes is None else qkv.slopes
    (keys, values, *numbers), treedef = jax.tree.flatten(layer)  # numbers of tokens: norms, scales
    y, *leaves = _call(
        "mpt_attention",
        [jax.ShapeDtypeStruct((T, H * hd), jnp.float32)]
        + [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (keys, values, *numbers)],
        input_output_aliases={1: 1, 2: 2} | {8 + i: 3 + i for i in range(len(numbers))},
    )(
        fused,
        keys,
        values,
        batch.slots,
        batch.block_tables,
        batch.query_start,
        batch.query_len,
        batch.context_len,
        *numbers,
        slopes=slopes,
        scale=np.float32(config.softmax_scale),
        softcap=np.float32(config.attn_logit_softcap or 0),
        window=np.int64(-1 if config.sliding_window is None else config.sliding_window),
        norms=layer.key_norms is not None,
        horizons=horizons,
    )
    return y.reshape(T, H, hd), jax.tree.unflatten(treedef, leaves)


def choose_ids(
    logits: Array, batch: Any, masks: Array, counts: Array, bias: Array, uniform: Array, vocab_limit: int
) -> Array:
    """`model.sampling.sampler.choose_ids`: logits [S, V] float32 -> [S] int32, all below vocab_limit.

    batch: its `SamplingBatch`; masks [S, ceil(V / 32)] uint32; counts and bias [slots, V] int32 and float32; uniform
    [S] in [0, 1) is the draw. A row's result does not depend on the other rows, to the last bit.
    """
    call = _call("mpt_sample", jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32))
    filters = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    changes = (batch.repetition, batch.presence, batch.frequency, batch.biased, batch.masked)
    rows = (batch.slot, *filters, *changes, uniform)
    return call(logits, masks, counts, bias, *rows, limit=np.int64(vocab_limit))


def log_probabilities(
    logits: Array, ids: Array, num_logprobs: Array, vocab_limit: int, most: int
) -> tuple[Array, Array, Array, Array]:
    """`model.sampling.logprobs.log_probabilities`: of ids [S] int32 under logits [S, V] float32.

    -> log probability [S] float32, rank [S] int32; of up to num_logprobs [S] int32 most likely ids themselves
    [S, most] int32 and their log probabilities [S, most] float32. A row's result does not depend on the other rows.
    """
    S = logits.shape[0]
    shapes = ((S,), jnp.float32), ((S,), jnp.int32), ((S, most), jnp.int32), ((S, most), jnp.float32)
    call = _call("mpt_log_probabilities", tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    found: tuple[Array, Array, Array, Array] = call(logits, ids, num_logprobs, limit=np.int64(vocab_limit))
    return found


def _norm_arguments(norm: Norm | None) -> tuple[list[Array | None], dict[str, Any]]:
    if norm is None:
        return [], {"norm": np.int32(0), "norm_bias": False, "eps": np.float32(0)}
    kind = np.int32(2 if norm.rms else 1)
    attributes = {"norm": kind, "norm_bias": norm.bias is not None, "eps": np.float32(norm.eps)}
    return [_vector(norm.weight), _vector(norm.bias)], attributes


def _vector(x: Array | None) -> Array | None:
    """The kernels read vectors of float32 and bfloat16."""
    return x if x is None or x.dtype in (jnp.float32, jnp.bfloat16) else x.astype(jnp.float32)
