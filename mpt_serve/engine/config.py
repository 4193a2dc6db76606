"""What a deployer decides about an engine."""

from dataclasses import dataclass
from typing import Any

from mpt_serve.engine.number_checks import is_integer


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Engine settings; checked on construction (`ValueError` names the field).

    max_num_seqs: requests that run at once; others wait.
    max_num_batched_tokens: tokens that one step computes at most. More finishes prompts sooner, and makes those who
        are already reading their answer wait longer for each token meanwhile. Above max_num_seqs.
    block_size: tokens per block of the key-value cache.
    num_blocks: cache blocks; None takes kv_cache_memory, or else a share of the memory that is free.
    kv_cache_memory: bytes for the key-value cache; ignored when num_blocks is given.
    max_model_len: longest request in tokens, prompt and answer together; None is the model's max_seq_len.
    cache_dtype: 'auto' (as the weights), 'float32', 'bfloat16', 'float16' or 'int8' (`docs/quantization.md`).
    prefix_caching: keep what was computed while there is room, for later requests that begin alike.
    speculation: how tokens are guessed, to be verified several at once: 'none', 'ngram' (from what the request has
        said so far) or 'draft' (by a smaller model). It changes how fast tokens come, never which.
    num_draft_tokens: tokens guessed at most for one request and step.
    kernels: 'auto' takes the fastest kernels that the device's platform has, 'xla' leaves attention,
        sampling and unquantised products to XLA.
    pre_compile: compile every step shape before the first request; otherwise on first use.
    compilation_cache_dir: folder of JAX's persistent compilation cache; None leaves JAX's own setting alone.
    """

    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    block_size: int = 32
    num_blocks: int | None = None
    kv_cache_memory: int | None = None
    max_model_len: int | None = None
    cache_dtype: str = "auto"
    prefix_caching: bool = True
    speculation: str = "ngram"
    num_draft_tokens: int = 11
    kernels: str = "auto"
    pre_compile: bool = True
    compilation_cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "num_draft_tokens"):
            _require_positive(name, getattr(self, name))
        for name in ("num_blocks", "kv_cache_memory"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        if self.max_model_len is not None and (not is_integer(self.max_model_len) or self.max_model_len < 2):
            raise ValueError(f"max_model_len must be null or an integer of at least 2, got {self.max_model_len!r}")
        if self.max_num_batched_tokens <= self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be above max_num_seqs={self.max_num_seqs}: "
                "every running request needs a token per step, and prompts need what is left"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not isinstance(self.prefix_caching, bool):
            raise ValueError(f"prefix_caching must be true or false, got {self.prefix_caching!r}")

    @property
    def speculates(self) -> bool:
        return self.speculation != "none"


_CHOICES = {
    "cache_dtype": ("auto", "float32", "bfloat16", "float16", "int8"),
    "kernels": ("auto", "xla"),
    "speculation": ("none", "ngram", "draft"),
}


def _require_positive(name: str, value: Any) -> None:
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
