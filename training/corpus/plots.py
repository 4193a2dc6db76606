"""The plots of the stories, read from plots.txt.

There a line is one wording, a paragraph of lines is a beat, and the beats under a `#` title are a plot. The first two
titles are the openings and the endings that all plots share.
"""

from __future__ import annotations

from pathlib import Path

Beat = tuple[str, ...]
Plot = tuple[Beat, ...]


def _read(text: str) -> tuple[Plot, ...]:
    sections = (section.partition("\n")[2] for section in ("\n" + text).split("\n# ")[1:])
    return tuple(tuple(tuple(beat.splitlines()) for beat in section.strip().split("\n\n")) for section in sections)


((OPENINGS,), (ENDINGS,), *_PLOTS) = _read(Path(__file__).with_name("plots.txt").read_text(encoding="utf-8"))
PLOTS: tuple[Plot, ...] = tuple(_PLOTS)
