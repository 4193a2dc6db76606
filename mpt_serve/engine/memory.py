"""The number of KV cache blocks, and the length of requests that follows from it."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from model.config.mpt_config import MptConfig
from model.params.kv_cache import kv_bytes_per_token
from model.params.packed_matrix import PackedMatrix
from model.params.weights import Weights, weight_bytes
from mpt_serve.configuration.engine_config import EngineConfig

logger = logging.getLogger(__name__)

# Share of a device's memory for weights and cache together; the rest is for a step's intermediate values.
_DEVICE_SHARE = 0.9
# Share of the host's free memory for the cache: the host also runs the rest of the server, and others.
HOST_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class CachePlan:
    """num_blocks blocks of block_size tokens; requests of at most max_model_len tokens.

    notes: where the plan deviates from the settings, and what a deployer should know, as sentences.
    """

    num_blocks: int
    block_size: int
    max_model_len: int
    notes: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that the cache holds."""
        return self.num_blocks * self.block_size

    @property
    def max_blocks_per_sequence(self) -> int:
        """Return the number of blocks of the longest request."""
        return _ceil_div(self.max_model_len, self.block_size)

    @property
    def concurrency(self) -> float:
        """Return how many requests of max_model_len tokens fit at once."""
        return self.num_blocks / self.max_blocks_per_sequence


def cache_dtype_for(weights: Weights, settings: EngineConfig) -> jnp.dtype:
    """Return the cache's dtype: 'auto' takes that of the matrices, or, where they are quantised, that of the rest."""
    if settings.cache_dtype != "auto":
        return jnp.dtype(settings.cache_dtype)
    quantised = isinstance(weights.wte, PackedMatrix) and weights.wte.row_scale is not None
    return jnp.dtype(weights.norm_f.weight.dtype if quantised else weights.wte.dtype)


def cache_plan_for(
    weights: Weights,
    config: MptConfig,
    settings: EngineConfig,
    cache_dtype: DTypeLike,
    draft_config: MptConfig | None = None,
) -> CachePlan:
    """Plan the cache for weights that are on their devices, and log its size. Raises as `plan_cache`.

    draft_config: of a draft model, whose cache has the same number of tokens.
    """
    bytes_per_token = kv_bytes_per_token(config, cache_dtype)
    if draft_config is not None:
        bytes_per_token += kv_bytes_per_token(draft_config, cache_dtype)
    plan = plan_cache(settings, config, bytes_per_token, _available_for_cache(weights))
    logger.info("weights: %.0f MiB", weight_bytes(weights) / 2**20)
    logger.info(
        "KV cache: %d tokens in %d blocks of %d (%.0f MiB); %.1fx concurrency for requests of %d tokens",
        plan.num_tokens,
        plan.num_blocks,
        plan.block_size,
        plan.num_tokens * bytes_per_token / 2**20,
        plan.concurrency,
        plan.max_model_len,
    )
    for note in plan.notes:
        logger.warning("%s", note)
    return plan


def _available_for_cache(weights: Weights) -> int:
    """Return the bytes for the whole cache: it is split over a mesh's `tensor` axis and repeated along the other."""
    placed = weights.norm_f.weight.sharding
    split = placed.mesh.shape["tensor"] if isinstance(placed, NamedSharding) else 1
    return split * min(available_memory(device) for device in placed.device_set)


def plan_cache(settings: EngineConfig, config: MptConfig, bytes_per_token: int, available: int) -> CachePlan:
    """Decide the number of blocks and the context length.

    bytes_per_token: of keys and values over all layers. available: bytes the cache may take when the settings name
    neither num_blocks nor kv_cache_memory. Raises `ValueError` when max_model_len goes beyond what the model defines.
    """
    max_model_len, notes = _model_len(settings, config)
    block_bytes = bytes_per_token * settings.block_size
    blocks_per_sequence = _ceil_div(max_model_len, settings.block_size)
    if settings.num_blocks is not None:
        num_blocks = settings.num_blocks
    elif settings.kv_cache_memory is not None:
        num_blocks = settings.kv_cache_memory // block_bytes
        if num_blocks < 1:
            raise ValueError(
                f"kv_cache_memory={settings.kv_cache_memory} bytes is less than one cache block of {block_bytes}; "
                "increase kv_cache_memory, or reduce block_size"
            )
    else:
        # Blocks beyond what all running requests could use would never be touched.
        num_blocks = max(1, min(available // block_bytes, settings.max_num_seqs * blocks_per_sequence))
    if num_blocks < blocks_per_sequence:
        shortened = num_blocks * settings.block_size
        notes.append(
            f"the context is shortened from {max_model_len} to {shortened} tokens: that is what the KV cache holds "
            f"({num_blocks} blocks of {settings.block_size}); increase kv_cache_memory, or reduce max_model_len"
        )
        max_model_len = shortened
    return CachePlan(num_blocks, settings.block_size, max_model_len, tuple(notes))


def _model_len(settings: EngineConfig, config: MptConfig) -> tuple[int, list[str]]:
    """Return the context length that settings and model allow, and notes on it."""
    wanted = settings.max_model_len
    if wanted is None or wanted <= config.max_seq_len:
        return wanted or config.max_seq_len, []
    limit = config.length_limit
    if limit is not None and wanted > limit:
        kind = "learned position embeddings" if config.learned_positions else "dynamic RoPE"
        raise ValueError(
            f"max_model_len={wanted} is too long: it must be at most {limit}, the max_seq_len of this model with {kind}"
        )
    note = f"max_model_len={wanted} is beyond the {config.max_seq_len} tokens the model was made for (max_seq_len)"
    return wanted, [f"{note}; its positions extrapolate, its quality may not"]


def available_memory(device: jax.Device) -> int:
    """Return the bytes that the cache may take on a device that holds the weights; host devices share the host's."""
    stats: dict[str, int] | None = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return max(0, int(stats["bytes_limit"] * _DEVICE_SHARE) - stats["bytes_in_use"])
    return int(_available_host_memory() * HOST_SHARE) // jax.local_device_count(device.platform)


def _available_host_memory(root: Path = Path("/")) -> int:
    """Return the free bytes of this host, within the limits of this process's control groups.

    Files that this process has mapped, such as its weights, count as used: Linux could drop their pages.
    """
    mapped = _mapped_bytes(root)
    try:
        meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        available = int(meminfo["MemAvailable"].split()[0]) * 1024 - mapped
    except OSError:  # not Linux: half of what is installed
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(0, min([available, *_cgroup_headroom(root, mapped)]))


def _mapped_bytes(root: Path) -> int:
    """Return the resident bytes of files that this process has mapped; 0 where the system does not say."""
    try:
        lines = (root / "proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))


def _cgroup_headroom(root: Path, mapped: int) -> Iterator[int]:
    """Yield what each control group around this process still allows, in bytes (versions 1 and 2)."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers == "":
            base, limit_file, usage_file = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_file, usage_file = (
                root / "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        folder = base / path.lstrip("/")
        # Limits of all enclosing groups hold. In a container the path may be the host's: then only the base exists.
        for group in (folder, *folder.parents):
            yield from _group_headroom(group, limit_file, usage_file, mapped)
            if group == base:
                break


def _group_headroom(group: Path, limit_file: str, usage_file: str, mapped: int) -> Iterator[int]:
    """Yield what one control group still allows, nothing where it has no limit."""
    try:
        limit, usage = (group / limit_file).read_text().strip(), int((group / usage_file).read_text())
        if limit != "max":
            yield int(limit) - usage + max(0, _reclaimable(group) - mapped)
    except OSError:
        return


def _reclaimable(group: Path) -> int:
    """Return the file pages in a group's usage that the kernel drops under pressure."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
