"""What `mpt-serve bench` shows: a table that changes while requests run, and the final one."""

import asyncio
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mpt_serve.load_test.load import Load
from mpt_serve.load_test.record import Record
from mpt_serve.load_test.summary import PERCENTILES, Objective, Summary, percentile

__all__ = ["show_live", "summary_table"]

_PERIOD_S = 0.25
_MAX_RECENT = 1000  # finished requests of which the live table shows percentiles
_RATE_PERIOD_S = 2.0


async def show_live(load: Load, console: Console) -> None:
    """Show the state of a load until cancelled. Without a terminal, nothing is shown."""
    if not console.is_terminal:
        return
    seen: list[tuple[float, int]] = []
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            now = time.perf_counter()
            seen = [*(pair for pair in seen if now - pair[0] < _RATE_PERIOD_S), (now, _events(load.records))]
            live.update(_live_table(load, seen, now), refresh=True)
            await asyncio.sleep(_PERIOD_S)


def _events(records: list[Record]) -> int:
    return sum(len(record.token_times) for record in records)


def _live_table(load: Load, seen: list[tuple[float, int]], now: float) -> Table:
    ended = [record for record in load.records if record.ended]
    failed = sum(bool(record.error) for record in ended)
    seconds = seen[-1][0] - seen[0][0]
    rate = (seen[-1][1] - seen[0][1]) / seconds if seconds else 0.0
    wanted = "" if load.plan.requests is None else f" of {load.plan.requests}"
    table = Table(title=f"{now - load.started:.0f} s", show_header=False)
    table.add_row("finished", f"{len(ended) - failed}{wanted}")
    table.add_row("running", str(len(load.records) - len(ended)))
    table.add_row("failed", f"[red]{failed}[/red]" if failed else "0")
    table.add_row("events/s", f"{rate:.0f}")
    recent = [record for record in ended if not record.error][-_MAX_RECENT:]
    for name, values in (
        ("TTFT", [r.ttft for r in recent if r.ttft is not None]),
        ("time per token", [r.mean_gap for r in recent if r.mean_gap is not None]),
    ):
        ordered = sorted(values)
        text = ", ".join(f"p{p} {1000 * percentile(ordered, p):.1f} ms" for p in (50, 99)) if ordered else "-"
        table.add_row(name, text)
    return table


def summary_table(summary: Summary) -> Table:
    """Return the figures of a load test as a table."""
    table = Table(title=_title(summary), caption=_caption(summary))
    table.add_column("milliseconds")
    for name in ("mean", *(f"p{p}" for p in PERCENTILES), "max"):
        table.add_column(name, justify="right")
    for name, values in (
        ("time to first token", summary.ttft),
        ("inter-token latency", summary.itl),
        ("time per token of a request", summary.tpot),
        ("end-to-end", summary.e2e),
    ):
        table.add_row(name, *(f"{value:.1f}" for value in (values.mean, *values.percentiles, values.max)))
    return table


def _title(summary: Summary) -> str:
    kind = "tokens" if summary.tokens_are_counted else "events"
    return (
        f"{summary.finished} requests in {summary.seconds:.1f} s: {summary.per_s(summary.finished):.2f} requests/s,"
        f" {summary.per_s(summary.output_tokens):.1f} output {kind}/s,"
        f" {summary.per_s(summary.prompt_tokens):.1f} prompt tokens/s"
    )


def _caption(summary: Summary) -> str | None:
    lines = [f"{count} failed: {kind}" for kind, count in summary.errors.items()]
    bounds = _bounds(summary.objective)
    if bounds:
        good = summary.per_s(summary.good)
        lines.append(f"goodput: {good:.2f} requests/s ({summary.good} of {summary.finished}) within {bounds}")
    return "\n".join(lines) or None


def _bounds(objective: Objective) -> str:
    named = (("TTFT", objective.ttft_ms), ("time per token", objective.itl_ms))
    return " and ".join(f"{name} {bound:g} ms" for name, bound in named if bound is not None)
