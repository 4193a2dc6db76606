"""Measure what clients of a server get of its engine's speed, and what the rest costs.

python benchmarks/serving.py CHECKPOINT --quantization int8 --streams 1 8 32 --out FOLDER [--peer NAME=URL]

Starts `mpt-serve run` and keeps it running. In each round, for each number of streams, the engine alone and the server
do the same work one after the other: that many prompts of --prompt random ids at once, --tokens greedy ids for each.
The engine's process is stopped while it is not measured; the server is idle while the engine is, and then takes a few
hundredths of a core. --peer: another OpenAI-style server that serves the same checkpoint already, such as vLLM's or
llama.cpp's; it takes its turn in each round. FOLDER gets results.jsonl, table.md, server.json (seconds
until the server was ready, and memory of its Generator) and, where matplotlib is installed, serving.svg.

 tok_s          generated tokens per second, prompts included
 ttft_ms        submission to the first token, median of the streams
 gap_ms         between two events of a stream: median and 99th percentile
 cpu_us         CPU time per token of each kind of process, in microseconds; the Generator's includes the engine, and
                the client is this process, which takes the same two cores
 share          the server's tok_s over the engine's in the same round: median (smallest to largest)
"""

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import DTYPES
from event_streams import run_streams
from harness import FIRST_ID, Shape
from started_server import KINDS, Server
from worker import Worker

HERE = Path(__file__).resolve().parent
CLIENT = "client"  # this process


def measure(url: str, model: str, shape: Shape, repetition: int, vocab: int) -> dict[str, Any]:
    """Run one batch of streams and return its figures."""
    source = random.Random(f"{repetition} {shape}")
    bodies = [
        {
            "model": model,
            "prompt": [source.randrange(FIRST_ID, vocab) for _ in range(shape.prompt)],
            "max_tokens": shape.new,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        for _ in range(shape.batch)
    ]
    streams = run_streams(url, bodies)
    begin, end = min(stream.sent for stream in streams), max(stream.events[-1] for stream in streams)
    gaps = sorted(b - a for s in streams for a, b in zip(s.events, s.events[1:], strict=False)) or [0.0]
    return {
        "tok_s": shape.batch * shape.new / (end - begin),
        "ttft_ms": 1000 * statistics.median(stream.events[0] - stream.sent for stream in streams),
        "gap_ms": [1000 * gaps[len(gaps) // 2], 1000 * gaps[int(0.99 * len(gaps))]],
    }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results of all rounds; each is appended to results.jsonl at once."""
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = [Shape(streams, options.prompt, options.tokens) for streams in options.streams]
    command = [sys.executable, HERE / "engine.py", options.checkpoint, *map(str, shapes), "--dtype", options.dtype]
    command += ["--quantization", options.quantization, "--threads", str(os.cpu_count())]
    if options.quantization_cache_dir:
        command += ["--quantization-cache-dir", options.quantization_cache_dir]
    if options.compilation_cache_dir:
        command += ["--compilation-cache-dir", options.compilation_cache_dir]
    engine = Worker([str(part) for part in command], folder / "engine.log", options.load_seconds)
    results: list[dict[str, Any]] = []
    try:
        server = Server(server_args(options), options.port, folder / "server.log", options.load_seconds)
        try:
            peers = {"mpt-serve": (server.url, "model"), **{name: peer(url) for name, url in options.peer}}
            for repetition in range(options.rounds + 1):  # the first is to warm up
                for shape in shapes:
                    alone = engine.ask(shape, repetition, options.load_seconds)
                    result = {"round": repetition, "streams": shape.batch, "engine": alone["agg_tok_s"]}
                    result["engine_ttft_ms"] = 1000 * alone["ttft_s"]
                    for name, (url, model) in peers.items():
                        before = {**server.cpu_seconds(), CLIENT: time.process_time()}
                        result[name] = measure(url, model, shape, repetition, options.vocab)
                        if url == server.url:
                            used = {**server.cpu_seconds(), CLIENT: time.process_time()}
                            tokens = shape.batch * shape.new
                            result["cpu_us"] = {k: 1e6 * (used[k] - before.get(k, 0)) / tokens for k in used}
                    if repetition:
                        results.append(result)
                        with (folder / "results.jsonl").open("a") as file:
                            file.write(json.dumps(result) + "\n")
            memory = {name: round(mib) for name, mib in server.memory("Generator").items()}
            (folder / "server.json").write_text(json.dumps({"ready_s": round(server.ready_s, 1), "memory_mib": memory}))
        finally:
            server.close()
    finally:
        engine.close()
    return results


def server_args(options: argparse.Namespace) -> dict[str, Any]:
    """Return the server's settings."""
    engine: dict[str, Any] = {"speculation": "none", "prefix_caching": False, "max_num_seqs": max(options.streams)}
    if options.compilation_cache_dir:
        engine["compilation_cache_dir"] = options.compilation_cache_dir
    return {
        "model": options.checkpoint,
        "served_model_name": "model",
        "dtype": DTYPES.get(options.dtype, options.dtype),
        "quantization": options.quantization,
        "quantization_cache_dir": options.quantization_cache_dir,
        "max_model_len": options.prompt + options.tokens,
        "engine": engine,
        "limits": {"stream_interval_ms": options.interval},
    }


def peer(url: str) -> tuple[str, str]:
    """Return a server's URL and the id of its model."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
        return url, json.load(response)["data"][0]["id"]


def table(results: Sequence[dict[str, Any]], peers: Sequence[str]) -> str:
    """Return the results as a table in Markdown."""
    head = ["streams", "engine alone", "mpt-serve", "share", "TTFT over the engine", "gap p50, p99", "CPU us per token"]
    rows = [[*head, *(f"{name}, ratio" for name in peers)]]
    for streams in sorted({result["streams"] for result in results}):
        own = [result for result in results if result["streams"] == streams]
        served = [result["mpt-serve"] for result in own]

        def median(values: Sequence[float]) -> str:
            return f"{statistics.median(values):,.1f}"

        shares = sorted(100 * s["tok_s"] / result["engine"] for s, result in zip(served, own, strict=True))
        cpu = {kind: statistics.median(result["cpu_us"].get(kind, 0.0) for result in own) for kind in (*KINDS, CLIENT)}
        row = [
            str(streams),
            median([result["engine"] for result in own]),
            median([s["tok_s"] for s in served]),
            f"**{statistics.median(shares):.0f} %** ({shares[0]:.0f} to {shares[-1]:.0f})",
            median([s["ttft_ms"] - r["engine_ttft_ms"] for s, r in zip(served, own, strict=True)]) + " ms",
            f"{median([s['gap_ms'][0] for s in served])}, {median([s['gap_ms'][1] for s in served])} ms",
            ", ".join(f"{kind} {us:.0f}" for kind, us in cpu.items() if us >= 1),
        ]
        for name in peers:
            ratio = statistics.median(s["tok_s"] / result[name]["tok_s"] for s, result in zip(served, own, strict=True))
            row.append(f"{median([result[name]['tok_s'] for result in own])}, **{ratio:.2f}**")
        rows.append(row)
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def plot(results: Sequence[dict[str, Any]], peers: Sequence[str], path: Path) -> None:
    """Plot tokens per second over the number of streams; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    counts = sorted({result["streams"] for result in results})
    series = {"engine alone": lambda result: result["engine"]}
    series |= {name: lambda result, name=name: result[name]["tok_s"] for name in ("mpt-serve", *peers)}
    for name, value in series.items():
        medians = [statistics.median(value(r) for r in results if r["streams"] == count) for count in counts]
        axis.plot(counts, medians, marker="o", label=name)
    axis.set(xscale="log", xlabel="streams", ylabel="tokens per second", xticks=counts, xticklabels=counts)
    axis.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder, or 'embedded'")
    parser.add_argument("--dtype", choices=[*DTYPES, *DTYPES.values()], default="bf16")
    parser.add_argument("--quantization", default="none", choices=("none", "int8", "int4"))
    parser.add_argument("--quantization-cache-dir", help="keep packed weights here, for both")
    parser.add_argument("--compilation-cache-dir", help="keep compiled programs here, for both")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=int, default=10, help="limits.stream_interval_ms (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=1700, help="ids of prompts are below it (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=URL", type=lambda text: tuple(text.split("=", 1))
    )
    parser.add_argument("--load-seconds", type=float, default=600.0)
    parser.add_argument("--out", required=True, metavar="FOLDER")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `finally`: the server does not end by itself
    names = [name for name, _ in options.peer]
    results = run(options)
    text = table(results, names)
    (Path(options.out) / "table.md").write_text(text)
    print(text)
    try:
        plot(results, names, Path(options.out) / "serving.svg")
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
