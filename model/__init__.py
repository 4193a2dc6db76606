"""MPT in JAX: configs, checkpoints, the forward pass and the paged step; independent of Ray, HTTP and text.

params, config = mpt_from_pretrained("path/to/mpt-7b", dtype=jnp.bfloat16)
model = FlaxMptForCausalLM(config)
logits = model(input_ids, params=params).logits  # [B, T] -> [B, T, V] float32

Names are imported when they are first used: JAX takes seconds to import, and readers of files alone do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.checkpoint.stored_tensor import CheckpointError
    from model.config.mpt_config import MptConfig
    from model.config.strict_reader import ConfigError
    from model.flax_module import FlaxMptForCausalLM
    from model.pretrained import mpt_from_pretrained

__all__ = ["CheckpointError", "ConfigError", "FlaxMptForCausalLM", "MptConfig", "mpt_from_pretrained"]

_MODULES = {
    "CheckpointError": "model.checkpoint.stored_tensor",
    "ConfigError": "model.config.strict_reader",
    "FlaxMptForCausalLM": "model.flax_module",
    "MptConfig": "model.config.mpt_config",
    "mpt_from_pretrained": "model.pretrained",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
