"""The weights of an MPT as records, and the one table that names, shapes and initialises each of them.

Loading, sharding and initialisation all read `weight_specs`. The names are llm-foundry's (models/mpt and
models/layers), which published checkpoints use.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.ops.norm import Norm
from model.ops.pytree import dataclass, static
from model.params.packed_matrix import PackedMatrix

Leaf = TypeVar("Leaf")
Matrix = Array | PackedMatrix


@dataclass
class Linear:
    """A linear layer: weight [out, in], an array in the checkpoint's order and dtype or a packed one; bias [out]."""

    weight: Matrix
    bias: Array | None = None


@dataclass
class Attention:
    """Projections of one block.

    wqkv: [(H + 2 Hkv) hd, d], all rows of Q, then K, then V. Under tensor parallelism over n shards, loading puts the
        heads in another order (`head_layout`), so that each shard holds its own Q, K and V; `shards` is that n.
    """

    wqkv: Linear
    out_proj: Linear  # [d, H hd]
    q_norm: Norm | None = None  # [H hd], or [hd] where one weight serves every head
    k_norm: Norm | None = None  # [Hkv hd], or [hd]
    shards: int = static(1)


@dataclass
class Ffn:
    """Projections of the feed-forward half of a block: up_proj and gate_proj [ffn, d], down_proj [d, ffn]."""

    up_proj: Linear
    down_proj: Linear
    gate_proj: Linear | None = None


@dataclass
class Block:
    """One pre-norm block."""

    norm_1: Norm
    attn: Attention
    norm_2: Norm
    ffn: Ffn


@dataclass
class Weights:
    """All parameters: wte [V, d]; wpe [max_seq_len, d], learned positions; lm_head [V, d] where not tied to wte."""

    wte: Matrix
    blocks: tuple[Block, ...]
    norm_f: Norm
    wpe: Array | None = None
    lm_head: Matrix | None = None

    @property
    def head(self) -> Matrix:
        """The matrix of the output head."""
        return self.wte if self.lm_head is None else self.lm_head


class WeightSpec(NamedTuple):
    """One parameter: its path in `Weights`, its name in a checkpoint, its shape, and its value at initialisation."""

    path: str
    name: str
    shape: tuple[int, ...]
    initial: str  # "normal", "ones" or "zeros"


def weight_specs(config: MptConfig) -> tuple[WeightSpec, ...]:
    """Return every parameter of the model, in the order of the forward pass."""
    return tuple(_specs(config))


def _specs(c: MptConfig) -> Iterator[WeightSpec]:
    yield WeightSpec("wte", "transformer.wte.weight", (c.vocab_size, c.d_model), "normal")
    if c.learned_positions:
        yield WeightSpec("wpe", "transformer.wpe.weight", (c.max_seq_len, c.d_model), "normal")
    for i in range(c.n_layers):
        yield from _block_specs(c, f"blocks/{i}", f"transformer.blocks.{i}")
    yield from _norm("norm_f", "transformer.norm_f", c.d_model, c.bias and not c.rms_norm)
    if not c.tied_head:
        yield WeightSpec("lm_head", "lm_head.weight", (c.vocab_size, c.d_model), "normal")


def _block_specs(c: MptConfig, path: str, name: str) -> Iterator[WeightSpec]:
    norm_bias, qk_norm_bias = c.bias and not c.rms_norm, c.bias and not c.qk_rms_norm  # RMSNorm has none
    q_size, kv_size = c.n_heads * c.head_dim, c.kv_n_heads * c.head_dim
    yield from _norm(f"{path}/norm_1", f"{name}.norm_1", c.d_model, norm_bias)
    yield from _linear(f"{path}/attn/wqkv", f"{name}.attn.Wqkv", q_size + 2 * kv_size, c.d_model, bool(c.qkv_bias))
    if c.qk_norm is not None:
        per_head = c.qk_norm == "gn"
        yield from _norm(f"{path}/attn/q_norm", f"{name}.attn.q_ln", c.head_dim if per_head else q_size, qk_norm_bias)
        yield from _norm(f"{path}/attn/k_norm", f"{name}.attn.k_ln", c.head_dim if per_head else kv_size, qk_norm_bias)
    yield from _linear(f"{path}/attn/out_proj", f"{name}.attn.out_proj", c.d_model, q_size, c.bias)
    yield from _norm(f"{path}/norm_2", f"{name}.norm_2", c.d_model, norm_bias)
    yield from _linear(f"{path}/ffn/up_proj", f"{name}.ffn.up_proj", c.ffn_hidden_size, c.d_model, c.bias)
    if c.ffn_gated:
        yield from _linear(f"{path}/ffn/gate_proj", f"{name}.ffn.gate_proj", c.ffn_hidden_size, c.d_model, c.bias)
    yield from _linear(f"{path}/ffn/down_proj", f"{name}.ffn.down_proj", c.d_model, c.ffn_hidden_size, c.bias)


def _norm(path: str, name: str, size: int, bias: bool) -> Iterator[WeightSpec]:
    yield WeightSpec(f"{path}/weight", f"{name}.weight", (size,), "ones")
    if bias:
        yield WeightSpec(f"{path}/bias", f"{name}.bias", (size,), "zeros")


def _linear(path: str, name: str, rows: int, columns: int, bias: bool) -> Iterator[WeightSpec]:
    yield WeightSpec(f"{path}/weight", f"{name}.weight", (rows, columns), "normal")
    if bias:
        yield WeightSpec(f"{path}/bias", f"{name}.bias", (rows,), "zeros")


def assemble_weights(config: MptConfig, leaves: Mapping[str, Any], shards: int = 1) -> Weights:
    """Build the record from arrays keyed by `WeightSpec.path`; `shards` as of `Attention`."""

    def norm(path: str) -> Norm:
        return Norm(leaves[f"{path}/weight"], leaves.get(f"{path}/bias"), config.rms_norm, config.norm_eps)

    def qk_norm(path: str) -> Norm:
        return Norm(leaves[f"{path}/weight"], leaves.get(f"{path}/bias"), config.qk_rms_norm, config.qk_norm_eps)

    def linear(path: str) -> Linear:
        return Linear(leaves[f"{path}/weight"], leaves.get(f"{path}/bias"))

    def optional(make: Callable[[str], Leaf], path: str) -> Leaf | None:
        return make(path) if f"{path}/weight" in leaves else None

    def block(p: str) -> Block:
        attn = Attention(
            wqkv=linear(f"{p}/attn/wqkv"),
            out_proj=linear(f"{p}/attn/out_proj"),
            q_norm=optional(qk_norm, f"{p}/attn/q_norm"),
            k_norm=optional(qk_norm, f"{p}/attn/k_norm"),
            shards=shards,
        )
        ffn = Ffn(
            up_proj=linear(f"{p}/ffn/up_proj"),
            down_proj=linear(f"{p}/ffn/down_proj"),
            gate_proj=optional(linear, f"{p}/ffn/gate_proj"),
        )
        return Block(norm(f"{p}/norm_1"), attn, norm(f"{p}/norm_2"), ffn)

    return Weights(
        wte=leaves["wte"],
        blocks=tuple(block(f"blocks/{i}") for i in range(config.n_layers)),
        norm_f=norm("norm_f"),
        wpe=leaves.get("wpe"),
        lm_head=leaves.get("lm_head"),
    )


def init_weights(config: MptConfig, key: Array, dtype: DTypeLike = jnp.float32, scale: float = 0.02) -> Weights:
    """Return random weights: normal with standard deviation `scale`, norms at one, biases at zero."""

    def initial(spec: WeightSpec, key: Array) -> Array:
        if spec.initial == "normal":
            return (scale * jax.random.normal(key, spec.shape)).astype(dtype)
        return jnp.full(spec.shape, 1 if spec.initial == "ones" else 0, dtype)

    specs = weight_specs(config)
    keys = jax.random.split(key, len(specs))
    return assemble_weights(config, {s.path: initial(s, k) for s, k in zip(specs, keys, strict=True)})


def weight_bytes(weights: Weights) -> int:
    """Return the memory of all leaves in bytes, each counted once however many devices hold it."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(weights))


def leaf_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Return the leaves of a tree by path, as in `WeightSpec.path`; `is_leaf` marks nodes to take whole."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]}


def path_name(path: tuple[Any, ...]) -> str:
    """Return a key path of JAX's in the form of `WeightSpec.path`, such as blocks/0/attn/wqkv/weight."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
