"""The drafter that an engine's settings name."""

from collections.abc import Sequence
from typing import NamedTuple

from jax.typing import DTypeLike

from model.checkpoint.pack import pack_weights
from model.config.mpt_config import MptConfig
from model.kernel_selection import weight_format
from model.params.weights import Weights, weight_bytes
from mpt_serve.configuration.engine_config import EngineConfig
from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.speculative.drafter import Drafter
from mpt_serve.engine.speculative.model_drafter import ModelDrafter
from mpt_serve.engine.speculative.ngram_drafter import NgramDrafter


class DraftModel(NamedTuple):
    """The smaller model that drafts for a larger one."""

    weights: Weights
    config: MptConfig


def check_draft(settings: EngineConfig, draft: DraftModel | None, vocab_size: int) -> None:
    """Raise ValueError unless a draft model is there exactly where speculation is 'draft', with this vocabulary."""
    if (settings.speculation == "draft") != (draft is not None):
        raise ValueError(
            f"speculation={settings.speculation!r} {'takes a' if draft is None else 'takes no'} draft model: set"
            " speculation to 'draft' and give a draft model, or neither"
        )
    if draft is not None and draft.config.vocab_size != vocab_size:
        raise ValueError(
            f"the draft model has a vocabulary of {draft.config.vocab_size} ids, the model one of {vocab_size}: "
            "a draft model must have the model's own tokenizer"
        )


def make_drafter(
    settings: EngineConfig,
    draft: DraftModel | None,
    weights: Weights,
    cache_plan: CachePlan,
    cache_dtype: DTypeLike,
    vocab_limit: int,
    step_sizes: Sequence[int],
) -> Drafter | None:
    """Return the drafter that `settings.speculation` names, ready for the model of these weights; None for 'none'."""
    if not settings.speculates:
        return None
    if draft is None:
        return NgramDrafter(step_sizes, settings.num_draft_tokens, settings.past_output_tokens)
    format = weight_format(draft.weights.norm_f.weight.devices(), "none", settings.kernels)
    packed = pack_weights(draft.weights, draft.config, format)
    drafter = ModelDrafter(
        packed,
        draft.config,
        cache_plan,
        cache_dtype,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        vocab_limit=vocab_limit,
        step_sizes=step_sizes,
        max_draft_tokens=settings.num_draft_tokens,
        cost_share=weight_bytes(packed) / weight_bytes(weights),  # most of the time goes into reading the weights
        kernels=settings.kernels,
    )
    if settings.pre_compile:
        drafter.compile_all()
    return drafter
