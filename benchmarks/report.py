"""Write a table and a plot of a comparison's results.jsonl.

    python benchmarks/report.py FOLDER

A cell's ratio is the median over the rounds of the baseline's speed over the other engine's in the same round.
"""

import argparse
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any

Result = dict[str, Any]
MARK = "†"  # of a contender whose first id is the reference's after no prompt


def speed(result: Result) -> float:
    """Return tokens per second: generated ones of all rows together; of the prompts where one token is generated."""
    return float(result["decode_tok_s"] if result["new"] > 1 else result["prefill_tok_s"])


def equal_ids(ids: Sequence[int], reference: Sequence[int]) -> int:
    """Return how many ids are the reference's before the first that is not."""
    return len(list(takewhile(bool, map(eq, ids, reference))))


def references(results: Iterable[Result]) -> dict[str, list[list[int]]]:
    """Return the reference's ids (compare.py) after each of the fixed prompts, by checkpoint."""
    return {result["ckpt"]: result["reference_ids"] for result in results if "reference_ids" in result}


def first_equal_ids(results: list[Result]) -> dict[tuple[str, str], list[int]]:
    """Return `equal_ids` after each prompt by (checkpoint, contender), of those that have a reference."""
    expected = references(results)
    return {
        (result["ckpt"], result["contender"]): [*map(equal_ids, result["first_ids"], expected[result["ckpt"]])]
        for result in results
        if "first_ids" in result and result["ckpt"] in expected
    }


@dataclass
class Cell:
    """All turns of one shape in one match on one checkpoint; the first of the contenders is the baseline."""

    contenders: list[str]
    turns: dict[str, dict[int, Result]] = field(default_factory=lambda: defaultdict(dict))  # contender, round
    failures: dict[str, str] = field(default_factory=dict)

    def ratios(self, opponent: str) -> list[float]:
        ours, theirs = self.turns[self.contenders[0]], self.turns[opponent]
        return [speed(ours[turn]) / speed(theirs[turn]) for turn in sorted(ours.keys() & theirs.keys())]

    def median(self, contender: str, value: Callable[[Result], float]) -> float:
        return statistics.median(map(value, self.turns[contender].values()))


Matches = dict[tuple[str, str], dict[tuple[int, int, int], Cell]]  # (checkpoint, match), (batch, prompt, new)


def gather(results: Iterable[Result]) -> Matches:
    """Index the results; a later result of the same run replaces an earlier one."""
    matches: Matches = defaultdict(dict)
    for result in results:
        if "batch" not in result:
            continue  # a contender that did not load
        shape = result["batch"], result["prompt"], result["new"]
        cell = matches[result["ckpt"], result["match"]].setdefault(shape, Cell(result["contenders"]))
        if "error" in result:
            cell.failures[result["contender"]] = result["error"]
        else:
            cell.turns[result["contender"]][result["round"]] = result
    return matches


def table(results: list[Result]) -> str:
    """Return Markdown: a section per checkpoint and match, then the machine's limits and the contenders."""
    lines: list[str] = []
    others = {key for key, counts in first_equal_ids(results).items() if not any(counts)}
    for (checkpoint, match), cells in gather(results).items():
        baseline, *opponents = next(iter(cells.values())).contenders
        marks = {name: f" {MARK}" if (checkpoint, name) in others else "" for name in (baseline, *opponents)}
        header = [f"`{baseline}`{marks[baseline]}", *(f"`{name}`{marks[name]} | ratio" for name in opponents)]
        lines += [f"## {checkpoint}, {match}", "", "| batch:prompt:new | " + " | ".join(header) + " |"]
        lines += ["|---|" + "---|" * (1 + 2 * len(opponents))]
        for shape, cell in cells.items():
            columns = [":".join(map(str, shape)), _speed_text(cell, baseline)]
            for opponent in opponents:
                columns += [_speed_text(cell, opponent), _ratio_text(cell.ratios(opponent))]
            lines.append("| " + " | ".join(columns) + " |")
        lines.append("")
    legend = _legend(marked=bool(others))
    return "\n".join([*lines, *legend, "", *_limits(results), "", *_contenders(results)]) + "\n"


def _speed_text(cell: Cell, contender: str) -> str:
    if not cell.turns[contender]:
        return "failed" if contender in cell.failures else "-"
    bound = {"memory": "mem", "arithmetic": "alu"}[next(iter(cell.turns[contender].values()))["bound"]]
    return f"{cell.median(contender, speed):.1f} ({cell.median(contender, lambda r: r['share']):.0%} {bound})"


def _ratio_text(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}, n={len(ratios)})"


def _legend(marked: bool) -> list[str]:
    lines = [
        "Speeds are medians over the rounds, in tokens per second over all rows: generated tokens, or where one new",
        "token is requested, prompt tokens. In brackets: the share of the machine's limit at that moment, bound",
        "by reading memory (mem) or by arithmetic (alu). A ratio is the first column's speed over the opponent's:",
        "median over the rounds of the ratio within a round (smallest to largest).",
    ]
    if marked:
        lines += ["", f"{MARK} Other output: its first greedy id is the reference's after none of the fixed prompts."]
    return lines


def _limits(results: list[Result]) -> list[str]:
    """Return the median over all measurements of the best value of each."""
    rates: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for name, rate in result.get("limits", {}).items():
            rates[name].append(rate)
    lines = [f"Machine: {_processor()}", "", "| limit (GB/s or 10^9 operations/s) | median | smallest | largest |"]
    lines.append("|---|---|---|---|")
    for name, values in rates.items():
        lines.append(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f} |")
    return lines


def _contenders(results: list[Result]) -> list[str]:
    lines = ["| contender | checkpoint | version | load s | peak RSS MB | weights MB | first equal ids |"]
    lines.append("|---|---|---|---|---|---|---|")
    equal = first_equal_ids(results)
    latest = {(r["ckpt"], r["contender"]): r for r in results if "rss_mb" in r}
    for (checkpoint, contender), result in latest.items():
        weights = result["weight_bytes"] / 1e6
        version, load = result["version"], result["load_s"]
        columns = [contender, checkpoint, version, load, f"{result['rss_mb']:.0f}", f"{weights:.0f}"]
        columns.append(_equal_text(equal.get((checkpoint, contender)), result))
        lines.append("| " + " | ".join(map(str, columns)) + " |")
    failed = {(r["ckpt"], r["contender"], r.get("batch"), r.get("prompt")): r for r in results if "error" in r}
    lines += [""] if failed else []
    for result in failed.values():
        shape = f", {result['batch']}:{result['prompt']}:{result['new']}" if "batch" in result else ""
        lines.append(f"- {result['contender']} on {result['ckpt']}{shape} failed: {result['error']}")
    return lines


def _equal_text(counts: list[int] | None, result: Result) -> str:
    if counts is None:
        return "-"
    generated = len(result["first_ids"][0])
    return f"{', '.join(map(str, counts))} of {generated}" + ("" if any(counts) else ": other output")


def _processor() -> str:
    try:
        information = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in information.splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def plot(results: list[Result], path: Path) -> None:
    """Plot ratios with their rounds as points, one panel per checkpoint; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panels: dict[str, list[tuple[str, list[float]]]] = defaultdict(list)
    for (checkpoint, _), cells in gather(results).items():
        baseline, *opponents = next(iter(cells.values())).contenders
        for opponent in opponents:
            for shape, cell in cells.items():
                if ratios := cell.ratios(opponent):
                    panels[checkpoint].append((f"{':'.join(map(str, shape)):>8}  {baseline} / {opponent}", ratios))
    if not panels:
        return
    rows = sum(map(len, panels.values()))
    figure, axes = pyplot.subplots(
        len(panels),
        squeeze=False,
        figsize=(8, 1.2 * len(panels) + 0.24 * rows),
        height_ratios=[len(bars) + 1 for bars in panels.values()],
        sharex=True,
        layout="constrained",
    )
    for (checkpoint, bars), axis in zip(panels.items(), axes[:, 0], strict=True):
        for row, (_, ratios) in enumerate(bars):
            median = statistics.median(ratios)
            axis.barh(row, median - 1, left=1, height=0.6, color="tab:blue" if median >= 1 else "tab:orange", alpha=0.6)
            axis.plot(ratios, [row] * len(ratios), ".", color="black", markersize=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7, family="monospace")
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(base=2))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(checkpoint)
    axes[-1, 0].set_xlabel("ratio of speeds: bar, median; points, rounds")
    figure.savefig(path)
    pyplot.close(figure)


def read(folder: Path) -> list[Result]:
    """Return the lines of results.jsonl, none where it does not exist yet."""
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(folder: Path) -> None:
    """Write table.md and ratios.svg beside results.jsonl."""
    results = read(folder)
    (folder / "table.md").write_text(table(results))
    try:
        plot(results, folder / "ratios.svg")
    except ModuleNotFoundError as error:
        print(f"no plot: {error.name} is not installed; `pip install matplotlib`, then run report.py {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
