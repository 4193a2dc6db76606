"""MPT models in JAX behind an OpenAI-style API, served by Ray Serve."""

__version__ = "0.1.0"
