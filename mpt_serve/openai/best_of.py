"""The best of several choices."""

import math
from collections.abc import Sequence
from dataclasses import replace

from mpt_serve.openai.output_choice import ChoicePart

__all__ = ["best"]


def best(parts: Sequence[ChoicePart], scores: Sequence[float], made: int, wanted: int) -> list[ChoicePart]:
    """Return the `wanted` choices of highest score out of the `made` of each prompt, best first, numbered anew.

    parts, scores: of all choices in order, prompt by prompt. Of equal scores the earlier choice wins, and NaN loses.
    """
    chosen = []
    for prompt, first in enumerate(range(0, len(parts), made)):
        ranking = sorted(range(first, first + made), key=lambda index: (_loss(scores[index]), index))
        for rank, index in enumerate(ranking[:wanted]):
            chosen.append(replace(parts[index], index=prompt * wanted + rank))
    return chosen


def _loss(score: float) -> float:
    return math.inf if math.isnan(score) else -score
