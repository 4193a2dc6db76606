"""`mpt-serve batch`: a file of requests through any OpenAI-style server, into a file of results."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.fields import parse_fields
from mpt_serve.commands.options import DEFAULT_URL, AsJson, Fields, Key, Url

if TYPE_CHECKING:
    from mpt_serve.batches.result_files import ResultFiles
    from mpt_serve.commands.batch_run import BatchRun

__all__ = ["batch"]

_INTERRUPTED = 130


def batch(
    requests: Annotated[
        Path,
        typer.Argument(
            metavar="IN.jsonl", help="a request in each line: custom_id, method, url and body, as OpenAI's batches have"
        ),
    ],
    outputs: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="gets a line for each request that succeeds")],
    errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="gets a line for each of the others; by default OUT.errors.jsonl"),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, help="requests at once, at most")] = 8,
    max_wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="how long to wait for a server that does not respond, or refuses"),
    ] = 600.0,
    fields: Fields = None,
    as_json: AsJson = False,
) -> None:
    """Send the requests of a file, and append each result to a file at once.

    Run the same command again after anything that ended it: what has a result is not sent again. Lines that are no
    requests have records among the errors, and so have requests that the server refuses; delete the file of errors to
    try these again. Fields of --set are for requests without such a field: with --set priority=1000, mpt-serve prefers
    other requests to these.

    The exit status is 1 if any request has no result or an error.
    """
    from mpt_serve.batches.result_files import ResultFiles, ResultFilesError
    from mpt_serve.commands.batch_run import BatchRun

    errors = errors or outputs.with_name(f"{outputs.name.removesuffix('.jsonl')}.errors.jsonl")
    if len({file.resolve() for file in (requests, outputs, errors)}) < 3:
        raise CommandError("IN.jsonl, OUT.jsonl and the file of errors must be three files", status=2)
    defaults = parse_fields(fields or ())
    try:
        with requests.open("rb"), ResultFiles(outputs, errors) as results:
            before = results.completed + results.failed
            run = BatchRun(url, key, requests, results, defaults, concurrency, max_wait)
            finished = asyncio.run(_show(run))
    except (OSError, ResultFilesError) as error:
        raise CommandError(str(error), status=2) from error
    _print_summary(results, before, as_json)
    if not finished:
        print("mpt-serve batch: interrupted; the same command continues", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED)
    if results.failed:
        raise typer.Exit(1)


async def _show(run: "BatchRun") -> bool:
    """Run to the end, with a bar on a terminal; return False if Ctrl-C or SIGTERM ended it before."""
    from rich.console import Console

    from mpt_serve.commands.batch_progress import show_progress

    task = asyncio.ensure_future(run.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    progress = asyncio.create_task(show_progress(run, Console(stderr=True)))
    try:
        await asyncio.wait([task])
    finally:
        progress.cancel()
        await asyncio.wait([progress])
    if task.cancelled():
        return False
    task.result()
    return True


def _print_summary(results: "ResultFiles", before: int, as_json: bool) -> None:
    figures = {"completed": results.completed, "failed": results.failed, "from_earlier_runs": before}
    if as_json:
        print(json.dumps({**figures, "outputs": str(results.outputs), "errors": str(results.errors)}))
        return
    earlier = f", {before} of them by earlier runs" if before else ""
    print(f"{results.completed} completed, {results.failed} failed{earlier}", file=sys.stderr)
    if results.failed:
        print(f"errors: {results.errors}", file=sys.stderr)
