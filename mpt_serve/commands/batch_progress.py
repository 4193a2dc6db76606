"""What `mpt-serve batch` shows while it runs."""

import asyncio

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mpt_serve.commands.batch_run import BatchRun

__all__ = ["show_progress"]

_PERIOD_S = 0.25
_LINE_PERIOD_S = 30.0


async def show_progress(run: BatchRun, console: Console) -> None:
    """Show how far a run is until cancelled: a bar on a terminal, a line every half a minute elsewhere."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_LINE_PERIOD_S)
            console.print(f"{run.num_finished} of {run.num_lines}, {run.results.failed} failed{run.notice}")
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=run.num_lines)
        try:
            while True:
                failed = f"[red]{run.results.failed} failed[/red]" if run.results.failed else ""
                progress.update(bar, completed=run.num_finished, description=failed + run.notice)
                await asyncio.sleep(_PERIOD_S)
        finally:
            progress.update(bar, completed=run.num_finished)
