"""MPT in JAX: configs, checkpoints, the forward pass and the paged step; independent of Ray, HTTP and text.

params, config = mpt_from_pretrained("path/to/mpt-7b", dtype=jnp.bfloat16)
model = FlaxMptForCausalLM(config)
logits = model(input_ids, params=params).logits  # [B, T] -> [B, T, V] float32
"""

from model.checkpoint.stored_tensor import CheckpointError
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError
from model.flax_module import FlaxMptForCausalLM
from model.pretrained import mpt_from_pretrained

__all__ = ["CheckpointError", "ConfigError", "FlaxMptForCausalLM", "MptConfig", "mpt_from_pretrained"]
