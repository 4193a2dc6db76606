"""Who guesses the next ids of a sequence, so that one step can check several of them. Guesses never change an answer.

The model samples every position of a draft with that position's own random number, and a draft counts as far as it
equals what was sampled: the answer is the one without drafts, to the id. So a drafter is free to use measured times.
"""

from mpt_serve.engine.speculative.choice import DraftModel, check_draft, make_drafter
from mpt_serve.engine.speculative.drafter import Drafter, DraftStats
from mpt_serve.engine.speculative.model_drafter import ModelDrafter
from mpt_serve.engine.speculative.ngram_drafter import NgramDrafter

__all__ = ["DraftModel", "DraftStats", "Drafter", "ModelDrafter", "NgramDrafter", "check_draft", "make_drafter"]
