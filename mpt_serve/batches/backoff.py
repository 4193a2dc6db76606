"""How long to wait before a request is sent again."""

import random

__all__ = ["backoff_s"]

_FIRST_S, _LONGEST_WANTED_S = 0.5, 120.0


def backoff_s(times: int, longest_s: float, wanted_s: float | None = None) -> float:
    """Return the seconds to wait: doubled with each of `times` in a row, which are 1 or more, up to `longest_s`.

    wanted_s: what the server wants instead, up to two minutes.
    A quarter is added or subtracted by chance, so that those who were refused together do not return together.
    """
    doubled_s = min(longest_s, _FIRST_S * 2 ** (min(times, 10) - 1))
    return (doubled_s if wanted_s is None else min(_LONGEST_WANTED_S, wanted_s)) * (0.75 + random.random() / 2)
