"""Draw the ratios in the tables of docs/performance.md as an SVG.

    python benchmarks/plot_ratios.py > docs/images/performance-ratios.svg

A panel for each table: bars are medians, lines from the smallest to the largest round.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

_TABLE = re.compile(r"^## (?P<title>[ML], \w+)\n\n(?P<rows>(?:\|.*\n)+)", re.MULTILINE)
_RATIO = re.compile(r"\*\*(?P<median>[\d.]+)\*\* \((?P<low>[\d.]+) to (?P<high>[\d.]+), n=\d+\)")
_COLOURS = {"vllm": "#c2571a", "ctranslate2": "#6a51a3", "openvino": "#0b6fa4", "llama_cpp": "#2b7a4b"}
_NAMES = {"vllm": "vLLM", "ctranslate2": "CTranslate2", "openvino": "OpenVINO", "llama_cpp": "llama.cpp"}
_WIDTH, _HEIGHT, _TOP, _LEFT, _HEAD = 300, 190, 24, 34, 56


@dataclass(frozen=True)
class Bar:
    """The speed of mpt_serve divided by an engine's, at a shape: batch:prompt:new."""

    shape: str
    engine: str
    median: float
    low: float
    high: float


def tables(page: str) -> dict[str, list[Bar]]:
    """Return the ratios of each table by its heading. Raises ValueError for a cell that holds none."""
    found: dict[str, list[Bar]] = {}
    for table in _TABLE.finditer(page):
        header, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in _lines(table["rows"]))
        engines = {place + 1: name.strip("`").partition(":")[0] for place, name in enumerate(header) if ":" in name}
        places = [place for place, name in enumerate(header) if name == "ratio"]
        found[table["title"]] = [_bar(row[0], engines[place], row[place]) for row in rows for place in places]
    return found


def _lines(text: str) -> Iterator[str]:
    yield from filter(None, text.splitlines())


def _bar(shape: str, engine: str, cell: str) -> Bar:
    match = _RATIO.fullmatch(cell)
    if match is None:
        raise ValueError(f"{shape}, {engine}: {cell!r} is not a ratio such as **1.62** (1.33 to 1.73, n=3)")
    return Bar(shape, engine, float(match["median"]), float(match["low"]), float(match["high"]))


def render(found: dict[str, list[Bar]]) -> str:
    """Return an SVG document with three panels in a row."""
    width, height = 3 * _WIDTH, _HEAD + -(-len(found) // 3) * _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{width / 2:g}" y="20" text-anchor="middle" font-size="14">'
        "Speed of mpt_serve divided by another engine's (batch:prompt:new tokens); 1 is equal</text>",
    ]
    drawn = {bar.engine for bars in found.values() for bar in bars}
    for place, engine in enumerate(filter(drawn.__contains__, _COLOURS)):
        x = width / 2 - 150 + 110 * place
        parts.append(f'<rect x="{x:g}" y="32" width="10" height="10" fill="{_COLOURS[engine]}"/>')
        parts.append(f'<text x="{x + 15:g}" y="41">{_NAMES[engine]}</text>')
    largest = math.ceil(max(bar.high for bars in found.values() for bar in bars))  # of all axes
    for place, (title, bars) in enumerate(found.items()):
        parts.append(f'<g transform="translate({place % 3 * _WIDTH},{_HEAD + place // 3 * _HEIGHT})">')
        parts += [*_panel(title, bars, largest), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, bars: list[Bar], largest: int) -> Iterator[str]:
    right, bottom = _WIDTH - 10, _HEIGHT - 34

    def y(ratio: float) -> float:
        return bottom - (bottom - _TOP) * ratio / largest

    yield f'<text x="{(_LEFT + right) / 2:g}" y="14" text-anchor="middle" font-size="12">{escape(title)}</text>'
    for tick in range(largest + 1):
        colour = "#222" if tick == 1 else "#e4e4e4"
        yield f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>'
        yield f'<path d="M{_LEFT} {y(tick):.1f}H{right}" stroke="{colour}"/>'
    shapes = list(dict.fromkeys(bar.shape for bar in bars))
    for place, shape in enumerate(shapes):
        middle = _LEFT + (right - _LEFT) * (place + 0.5) / len(shapes)
        yield f'<text x="{middle:.1f}" y="{bottom + 16}" text-anchor="middle">{shape}</text>'
        here = [bar for bar in bars if bar.shape == shape]
        pitch = min(24, 0.9 * (right - _LEFT) / len(shapes) / len(here))
        width = pitch - 4
        for number, bar in enumerate(here):
            x = middle + pitch * (number - (len(here) - 1) / 2)
            yield (
                f'<rect x="{x - width / 2:.1f}" y="{y(bar.median):.1f}" width="{width:g}"'
                f' height="{bottom - y(bar.median):.1f}"'
                f' fill="{_COLOURS[bar.engine]}"><title>{_NAMES[bar.engine]}: {bar.median:g}</title></rect>'
            )
            yield f'<path d="M{x:.1f} {y(bar.low):.1f}V{y(bar.high):.1f}" stroke="#222"/>'


if __name__ == "__main__":
    print(render(tables(PAGE.read_text(encoding="utf-8"))), end="")
