"""A picture of a load test as SVG: distributions of latencies, and the throughput over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mpt_serve.load_test.record import Record
from mpt_serve.load_test.summary import gaps_of

__all__ = ["render_plot"]

_WIDTH, _HEIGHT, _MARGIN, _TOP = 420, 260, 56, 40
_POINTS = 200
_TICKS = 4


@dataclass(frozen=True)
class _Panel:
    """One diagram: points of a line that begins at (0, 0)."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float]]


def render_plot(records: Sequence[Record], title: str) -> str:
    """Return an SVG document with four diagrams of the requests that finished without an error."""
    finished = [record for record in records if record.ended and not record.error]
    ttft = [record.ttft for record in finished if record.ttft is not None]
    panels = [
        _distribution("Time to first token", ttft),
        _distribution("Inter-token latency", gaps_of(finished)),
        _distribution("End-to-end latency", [record.ended - record.started for record in finished]),
        _Panel("Throughput", "seconds", "tokens/s", _rate(finished)),
    ]
    width, height = 2 * _WIDTH, 2 * _HEIGHT + _TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{width / 2}" y="24" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number % 2 * _WIDTH},{_TOP + number // 2 * _HEIGHT})">')
        parts += [*_draw(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _distribution(title: str, seconds: Sequence[float]) -> _Panel:
    """Return the share of values up to each value, in milliseconds."""
    ordered = sorted(1000 * value for value in seconds)
    step = max(1, len(ordered) // _POINTS)
    places = sorted({*range(0, len(ordered), step), *range(max(0, len(ordered) - 1), len(ordered))})
    points = [(ordered[place], 100 * (place + 1) / len(ordered)) for place in places]
    return _Panel(title, "milliseconds", "% of values", points)


def _rate(records: Sequence[Record]) -> list[tuple[float, float]]:
    """Return tokens per second in intervals of equal length."""
    if not records:
        return []
    begin, end = min(record.started for record in records), max(record.ended for record in records)
    count = min(60, max(2, len(records)))
    length = max(end - begin, 1e-9) / count
    tokens = [0.0] * count
    for record in records:
        each = record.num_tokens / max(1, len(record.token_times))  # an event may have several
        for moment in record.token_times:
            tokens[min(count - 1, int((moment - begin) / length))] += each
    return [((place + 0.5) * length, number / length) for place, number in enumerate(tokens)]


def _axis_end(largest: float) -> float:
    """Return the smallest end of an axis from 0 that includes a value and whose ticks are round numbers."""
    step = max(largest, 1e-9) / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(step))
    return _TICKS * magnitude * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= step * (1 - 1e-9))


def _draw(panel: _Panel) -> list[str]:
    left, right, top, bottom = _MARGIN, _WIDTH - 16, 24, _HEIGHT - 44
    x_max = _axis_end(max((x for x, _ in panel.points), default=1.0))
    y_max = _axis_end(max((y for _, y in panel.points), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_max, bottom - (bottom - top) * y / y_max

    parts = [
        f'<text x="{(left + right) / 2}" y="14" text-anchor="middle" font-size="12">{panel.title}</text>',
        f'<text x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle">{panel.x_label}</text>',
        f'<text x="12" y="{(top + bottom) / 2}" text-anchor="middle"'
        f' transform="rotate(-90 12 {(top + bottom) / 2})">{panel.y_label}</text>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#888"/>',
    ]
    for tick in range(_TICKS + 1):
        x, _ = place(x_max * tick / _TICKS, 0)
        _, y = place(0, y_max * tick / _TICKS)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{x_max * tick / _TICKS:.4g}</text>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{y_max * tick / _TICKS:.4g}</text>')
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#eee"/>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(x, y) for x, y in panel.points))
    return [*parts, f'<polyline points="{line}" fill="none" stroke="#1f6fb2" stroke-width="1.5"/>']
