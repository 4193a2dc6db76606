"""The best of several choices (`best_of`)."""

import math
from collections.abc import Sequence
from dataclasses import replace

from mpt_serve.openai.output_choice import ChoicePart

__all__ = ["best"]


def best(parts: Sequence[ChoicePart], scores: Sequence[float], best_of: int, n: int) -> list[ChoicePart]:
    """Return the `n` choices with the highest scores of the `best_of` choices of each prompt, best first, renumbered.

    parts, scores: of all choices in order, prompt by prompt. Of equal scores the earlier choice wins; NaN ranks last.
    """
    chosen = []
    for prompt, first in enumerate(range(0, len(parts), best_of)):
        ranking = sorted(range(first, first + best_of), key=lambda index: (_loss(scores[index]), index))
        for rank, index in enumerate(ranking[:n]):
            chosen.append(replace(parts[index], index=prompt * n + rank))
    return chosen


def _loss(score: float) -> float:
    return math.inf if math.isnan(score) else -score
