"""Log probabilities of ids that requests name, after the tokens that a step samples.

A step computes them from its hidden states as those of prompts are, in separate calls: rows of requests that name no
ids cost no more than before.
"""

from collections.abc import Callable, Sequence

from jax import Array

from mpt_serve.engine.step_output import SampledIds
from mpt_serve.engine.step_rows import Row

Score = Callable[[int, Sequence[int]], Array]
"""(a token of the step, at most SCORED ids) -> what `SampledIds.read` takes: log probabilities of the ids after it"""

Named = list[list[Array]]  # of each sample of a row, those of its ids, in calls


def start_named(row: Row, begin: int, score: Score, at_once: int) -> Named | None:
    """Start computing what the request of a row names; None where it names nothing, or nothing is sampled.

    begin: the row's first token in the step. at_once: ids that `score` takes.
    """
    ids = row.request.params.logprob_token_ids
    if ids is None or not row.samples:
        return None
    first = begin + row.length - row.samples
    parts = [ids[i : i + at_once] for i in range(0, len(ids), at_once)]
    return [[score(first + sample, part) for part in parts] for sample in range(row.samples)]


def read_named(named: Named, ids: Sequence[int], at_once: int) -> list[tuple[tuple[int, float], ...]]:
    """Return the ids with their log probabilities, after each sample."""
    tops = []
    for calls in named:
        found: list[tuple[int, float]] = []
        for i, packed in enumerate(calls):
            part = ids[i * at_once : (i + 1) * at_once]
            logprobs = SampledIds.read(packed).logprobs(0, len(part), 0)
            found += zip(part, (own.logprob for own in logprobs), strict=True)
        tops.append(tuple(found))
    return tops
