"""MPT in JAX: configs, checkpoints, the forward pass and the paged step. Knows nothing of Ray, HTTP or text."""

from model.config import ConfigError, MptConfig
from model.flax_module import FlaxMptForCausalLM

__all__ = ["ConfigError", "FlaxMptForCausalLM", "MptConfig"]
