"""`mpt-serve bench`: a load test of an OpenAI-style server."""

import asyncio
import json
import ssl
import sys
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.fields import parse_fields
from mpt_serve.commands.options import DEFAULT_URL, Fields, Key, ServedModel, Url
from mpt_serve.commands.server_url import ServerUrl
from mpt_serve.load_test.connection import Connections, Target
from mpt_serve.load_test.load import Load, LoadPlan
from mpt_serve.load_test.prompts import Lengths, WordCounts, words
from mpt_serve.load_test.request_source import RequestSource, request_body
from mpt_serve.load_test.summary import Objective, Summary, summarize

if TYPE_CHECKING:
    from mpt_serve.commands.server_client import ServerClient

__all__ = ["bench"]

_DEFAULT_REQUESTS = 100
_SHORT, _LONG = 4, 16  # words of the two requests that measure a tokenizer


class Api(StrEnum):
    """Endpoints that can be tested."""

    COMPLETIONS = "completions"
    CHAT = "chat"


def bench(
    url: Url = DEFAULT_URL,
    model: ServedModel = None,
    key: Key = None,
    api: Annotated[Api, typer.Option(help="the endpoint")] = Api.COMPLETIONS,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="requests at once, at most; 1 without --rate")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="requests per second, at random moments (a Poisson process)")
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", "-n", min=1, help=f"how many; {_DEFAULT_REQUESTS} without --duration")
    ] = None,
    duration: Annotated[float | None, typer.Option(min=0.001, metavar="SECONDS", help="begin no request later")] = None,
    prompt_tokens: Annotated[str, typer.Option(metavar="N or LOW-HIGH", help="length of the prompts")] = "128",
    output_tokens: Annotated[str, typer.Option(metavar="N or LOW-HIGH", help="of the outputs, at most")] = "64",
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="have outputs of exactly that length (mpt-serve, vLLM, SGLang)")
    ] = False,
    warmup: Annotated[int, typer.Option(min=0, help="requests before, which do not count")] = 1,
    timeout: Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="of a request")] = 600.0,
    slo_ttft_ms: Annotated[
        float | None,
        typer.Option("--slo-ttft-ms", min=0, help="goodput: requests with at most this time to the first token"),
    ] = None,
    slo_itl_ms: Annotated[
        float | None, typer.Option("--slo-itl-ms", min=0, help="goodput: with at most this mean time between tokens")
    ] = None,
    seed: Annotated[int, typer.Option(help="of prompts and moments")] = 0,
    fields: Fields = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the figures as JSON; - for stdout")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="write distributions and throughput as an SVG picture")] = None,
) -> None:
    """Load an OpenAI-style server with streamed requests, and print what its clients get.

    Prompts are random words, as many as the server's own counts say that a prompt of the wanted length needs. The exit
    status is 1 if any request failed. Ctrl-C ends the test early, with the figures so far. Inter-token latency is the
    time between two events of a stream, in which a server may send several tokens.
    """
    from mpt_serve.commands.server_client import ServerClient

    plan = LoadPlan(
        concurrency=concurrency if rate is not None else concurrency or 1,
        rate=rate,
        requests=requests if duration is not None else requests or _DEFAULT_REQUESTS,
        duration_s=duration,
        seed=seed,
    )
    lengths = _lengths(prompt_tokens, "--prompt-tokens"), _lengths(output_tokens, "--output-tokens")
    options = {**({"ignore_eos": True} if ignore_eos else {}), **parse_fields(fields or ())}
    with ServerClient(url, key) as client:
        name = model or client.first_model()
        counts = _measure_words(client, api, name)
        source = _source(client.url, api, name, key, lengths, counts, options, seed)
    objective = Objective(slo_ttft_ms, slo_itl_ms)
    load, cpu_share = asyncio.run(_run(client.url, plan, source, warmup, timeout))
    summary = summarize(load.records, objective)
    described = {"url": str(client.url), "model": name, "api": api.value, **_described(plan, lengths)}
    _write(summary, {**described, "generator_cpu_share": round(cpu_share, 3)}, json_file)
    if plot is not None:
        _write_plot(load, f"{name}: {summary.finished} requests, {_load_text(plan)}", plot)
    if cpu_share > 0.8:
        print("mpt-serve bench: the load generator itself was busy all the time, and limits the load", file=sys.stderr)
    if summary.errors or not summary.finished:
        raise typer.Exit(1)


async def _run(
    url: ServerUrl, plan: LoadPlan, source: RequestSource, warmup: int, timeout_s: float
) -> tuple[Load, float]:
    """Run a plan after its warm-up; return it with its records, and the share of a core that this process took.

    A first Ctrl-C ends it.
    """
    from rich.console import Console

    from mpt_serve.commands.bench_table import show_live

    target = Target(url.host, url.port, ssl.create_default_context() if url.is_tls else None)
    connections = Connections(target, timeout_s)
    before = LoadPlan(min(warmup, plan.concurrency or warmup) or 1, None, warmup)
    # Their numbers differ, so that no prompt of the test is known to the server.
    await Load(before, connections, lambda number: source(-1 - number)).run()
    load = Load(plan, connections, source)
    began, cpu = time.perf_counter(), time.process_time()
    table = asyncio.create_task(show_live(load, Console(stderr=True)))
    with suppress(asyncio.CancelledError):
        await load.run()
    share = (time.process_time() - cpu) / max(time.perf_counter() - began, 1e-9)
    table.cancel()
    with suppress(asyncio.CancelledError):
        await table
    connections.close()
    return load, share


def _lengths(text: str, option: str) -> Lengths:
    try:
        return Lengths.parse(text)
    except ValueError as error:
        raise CommandError(f"{option} must be a number of tokens, such as 128, or a range: 64-512", status=2) from error


def _measure_words(client: "ServerClient", api: Api, model: str) -> WordCounts:
    """Return how the server counts words, by two short requests; each word as one token where it does not count."""
    import random

    measured = []
    for count in (_SHORT, _LONG):
        text = words(count, random.Random(count))
        response = client.post_api(
            f"/{'chat/' if api is Api.CHAT else ''}completions", request_body(api.value, model, text, 1)
        )
        measured.append((count, (response.get("usage") or {}).get("prompt_tokens") or count))
    return WordCounts.fit(*measured)


def _source(
    url: ServerUrl,
    api: Api,
    model: str,
    key: str | None,
    lengths: tuple[Lengths, Lengths],
    counts: WordCounts,
    options: dict[str, Any],
    seed: int,
) -> RequestSource:
    return RequestSource(api.value, model, url.path, url.authority, key, *lengths, counts, options, seed)


def _described(plan: LoadPlan, lengths: tuple[Lengths, Lengths]) -> dict[str, Any]:
    of_plan = {
        "concurrency": plan.concurrency,
        "rate": plan.rate,
        "requests": plan.requests,
        "duration_s": plan.duration_s,
    }
    return {**of_plan, "seed": plan.seed, "prompt_lengths": str(lengths[0]), "output_lengths": str(lengths[1])}


def _load_text(plan: LoadPlan) -> str:
    named = (("requests/s", plan.rate), ("at once", plan.concurrency))
    return ", ".join(f"{value:g} {name}" for name, value in named if value is not None)


def _write(summary: Summary, described: dict[str, Any], file: Path | None) -> None:
    """Print the table, to stderr where JSON goes to stdout, and write the JSON."""
    from rich.console import Console

    from mpt_serve.commands.bench_table import summary_table

    to_stdout = str(file) == "-"
    Console(stderr=to_stdout).print(summary_table(summary))
    if file is None:
        return
    text = json.dumps({**described, **summary.as_json()}, indent=2) + "\n"
    if to_stdout:
        print(text, end="")
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"the figures were not written: {error}") from error


def _write_plot(load: Load, title: str, file: Path) -> None:
    from mpt_serve.load_test.plot import render_plot

    try:
        file.write_text(render_plot(load.records, title), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"the picture was not written: {error}") from error
