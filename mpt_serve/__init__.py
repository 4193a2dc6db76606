"""MPT models in JAX behind an OpenAI-style API, served by Ray Serve.

from mpt_serve import FlaxMptForCausalLM, JAXServer, mpt_from_pretrained   # EasyDeL's calls: docs/easydel.md

Names are imported when they are first used, so that the command line starts without JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model import FlaxMptForCausalLM, mpt_from_pretrained
    from mpt_serve.easydel.jax_server import JAXServer
    from mpt_serve.easydel.server_config import JAXServerConfig

__all__ = ["FlaxMptForCausalLM", "JAXServer", "JAXServerConfig", "mpt_from_pretrained"]

__version__ = "0.1.0"

_MODULES = {
    "FlaxMptForCausalLM": "model",
    "JAXServer": "mpt_serve.easydel.jax_server",
    "JAXServerConfig": "mpt_serve.easydel.server_config",
    "mpt_from_pretrained": "model",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
