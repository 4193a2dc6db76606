"""The engine: one process, one model; token ids in, token ids out. No text, no HTTP, no Ray.

`mpt_serve.llm` puts text around it. Requests, parameters, settings and counters are plain Python; `Engine` brings JAX
with it, and is imported when it is first named.
"""

from typing import TYPE_CHECKING

from mpt_serve.configuration.engine_config import EngineConfig
from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.request import Delta, FinishReason, TokenLogprobs
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.stats import EngineStats
from mpt_serve.errors import BusyError, EngineClosedError, RequestError

if TYPE_CHECKING:
    from mpt_serve.engine.engine import Engine

__all__ = [
    "BusyError",
    "Delta",
    "Engine",
    "EngineClosedError",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "PromptEmbeds",
    "RequestError",
    "SamplingParams",
    "TokenLogprobs",
]


def __getattr__(name: str) -> object:
    if name == "Engine":
        from mpt_serve.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
