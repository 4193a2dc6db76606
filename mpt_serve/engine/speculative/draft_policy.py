"""How many ids to draft for each request of a step."""

import heapq
from collections.abc import Sequence

from mpt_serve.engine.step_costs import StepCosts

# A step with drafts must promise this multiple of the tokens per second of one without: its ids are read before the
# next step starts, so that the device waits for the host in between.
_MARGIN = 1.05


def draft_lengths(
    survivals: Sequence[Sequence[float]], num_rows: int, costs: StepCosts, cost_of_drafting: float = 0.0
) -> list[int]:
    """Return how many ids to draft for each request, for the most expected tokens per second; zeros where none pay.

    survivals: for each request, the probability that its first, second ... drafted id is accepted; falling.
    num_rows: rows of the step, each of which generates one id without drafts (requests without survivals included).
    cost_of_drafting: of one more id for all requests together, in the unit of `costs`.

    A step of R rows and n drafted ids, the longest draft being of m, promises R + sum of the ids' survivals tokens in
    cost(R + n) + m * cost_of_drafting. The best n ids are those with the n largest survivals; as survivals fall along a
    draft, they are beginnings of drafts. So it is enough to try each n.
    """
    candidates = [(survival, -j, i) for i, row in enumerate(survivals) for j, survival in enumerate(row)]
    best = heapq.nlargest(max(0, max(costs.sizes) - num_rows), candidates)
    lengths = [0] * len(survivals)
    if not best:
        return lengths
    most, chosen, expected, longest = _MARGIN * num_rows / costs.cost(num_rows), 0, float(num_rows), 0
    size, cost = 0, 0.0
    for n, (survival, place, _) in enumerate(best, start=1):
        expected += survival
        longest = max(longest, 1 - place)
        if num_rows + n > size:
            size, cost = costs.padded(num_rows + n), costs.cost(num_rows + n)
        rate = expected / (cost + longest * cost_of_drafting)
        if rate > most:
            most, chosen = rate, n
    for _, _, i in best[:chosen]:
        lengths[i] += 1
    return lengths
