"""The engine: one process, one model; no HTTP, no Ray.

Requests are token ids in, token ids out; text is what `Engine.generate` makes of them at the edge.

Requests, parameters and settings are plain Python. `Engine` brings JAX with it, and is imported when it is first named.
"""

from typing import TYPE_CHECKING

from mpt_serve.configuration.engine_config import EngineConfig
from mpt_serve.engine.request import Delta, FinishReason, TokenLogprobs
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import BusyError, EngineClosedError, RequestError
from mpt_serve.llm.completion import Choice, Completion, Piece

if TYPE_CHECKING:
    from mpt_serve.engine.engine import Engine
    from mpt_serve.engine.stats import EngineStats

__all__ = [
    "BusyError",
    "Choice",
    "Completion",
    "Delta",
    "Engine",
    "EngineClosedError",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "Piece",
    "RequestError",
    "SamplingParams",
    "TokenLogprobs",
]


def __getattr__(name: str) -> object:
    if name in ("Engine", "EngineStats"):
        from mpt_serve.engine import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
