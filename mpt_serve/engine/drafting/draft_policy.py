"""How many ids to draft for each request of a step."""

import heapq
from collections.abc import Sequence

from mpt_serve.engine.drafting.step_costs import StepCosts

# A step with drafts must promise so many times the tokens per second of one without: its ids are read before the next
# step starts, so that the device waits for the host in between.
_MARGIN = 1.05


def draft_lengths(survivals: Sequence[Sequence[float]], num_rows: int, costs: StepCosts) -> list[int]:
    """Share out the tokens of the step size that promises the most tokens per second; zeros where none pays.

    survivals: for each request, the probability that its first, second ... drafted id is accepted; falling.
    num_rows: rows of the step, each of which yields one id without drafts (requests without survivals included).

    A step of R rows and the drafts of a set D yields R + sum of the survivals of D ids. For each step size s the best
    set is that of the s - R largest survivals; as survivals fall along a draft, it consists of beginnings of drafts.
    The best size is the one with the largest yield / cost(s).
    """
    candidates = [(survival, i) for i, row in enumerate(survivals) for survival in row]
    lengths = [0] * len(survivals)
    if not candidates:
        return lengths
    room = max(costs.sizes) - num_rows
    best = heapq.nlargest(room, candidates, key=lambda candidate: candidate[0]) if room > 0 else []
    most, chosen, taken, expected = _MARGIN * num_rows / costs.cost(num_rows), 0, 0, float(num_rows)
    for size in costs.sizes:
        if size <= num_rows or taken == len(best):
            continue
        until = min(size - num_rows, len(best))
        expected += sum(survival for survival, _ in best[taken:until])
        taken = until
        if expected / costs.cost(size) > most:
            most, chosen = expected / costs.cost(size), taken
    for _, i in best[:chosen]:
        lengths[i] += 1
    return lengths
