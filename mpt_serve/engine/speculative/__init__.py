"""Speculative decoding: drafters propose the next ids of a sequence, so that one step can verify several of them.

Drafts never change the output. The model samples every position of a draft with that position's own random number, and
draft tokens are accepted as far as they equal what was sampled: the output is the one without drafts, to the id. So a
drafter is free to use measured times.
"""

from mpt_serve.engine.speculative.drafter import Drafter
from mpt_serve.engine.speculative.drafter_factory import DraftModel, check_draft, make_drafter
from mpt_serve.engine.speculative.model_drafter import ModelDrafter
from mpt_serve.engine.speculative.ngram_drafter import NgramDrafter

__all__ = ["DraftModel", "Drafter", "ModelDrafter", "NgramDrafter", "check_draft", "make_drafter"]
