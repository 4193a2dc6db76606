"""Measure a started server with a checkpoint of real size: how long it takes to start, its memory and its speed.

    python benchmarks/make_checkpoints.py ~/mpt 7b --tokenizer FOLDER
    python benchmarks/real_sizes.py ~/mpt/7b --quantization int8 --cache ~/mpt/cache --out ~/mpt/results.jsonl

Starts `mpt-serve run` --starts times: the first start packs the weights and compiles the programs, unless --cache has
them already; later ones map and load them. Only the last server is measured, at a batch of one and of --streams, with
--rounds rounds each: prompts of random ids, greedy, over raw sockets. One JSON line for all:

 ready_s         seconds from the command to /ready, of each start
 memory_mib      of the Generator, at the end: its own, of mapped files, and the peak of both
 ttft_s          from the request to the first token, median of the rounds; by the number of prompt tokens
 tok_s           generated tokens per second after the first ones of all streams; by the number of streams
 read_gb_s       what the memory delivered to the cores at best, measured before and after with the server stopped
 of_memory       tok_s of one stream times the bytes of the weights, over read_gb_s: 1 is the limit of the memory
 longest         --longest N: seconds until the first token of a prompt of N ids, and tokens per second after it
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
from pathlib import Path
from typing import Any

import roofline
from event_streams import Stream, run_streams
from harness import FIRST_ID
from started_server import Server

PROMPTS = (128, 512)  # tokens


def prompt_of(count: int, source: random.Random) -> list[int]:
    return [source.randrange(FIRST_ID, 4000) for _ in range(count)]


def complete(server: Server, prompts: list[list[int]], tokens: int) -> list[Stream]:
    """Complete the prompts at once and return their streams."""
    body = {"model": "model", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    return run_streams(server.url, [{**body, "prompt": prompt} for prompt in prompts])


def first_token(streams: list[Stream]) -> float:
    """Return the seconds from the first request to the first token of every stream."""
    return max(stream.events[0] for stream in streams) - min(stream.sent for stream in streams)


def decode_speed(streams: list[Stream], tokens: int) -> float:
    """Return the tokens per second of all streams together from when each has its first token.

    Streams that had theirs early decode before; events are taken to have the same number of tokens.
    """
    begin = max(stream.events[0] for stream in streams)
    later = sum(moment > begin for stream in streams for moment in stream.events)
    share = later / sum(len(stream.events) - 1 for stream in streams)
    return share * len(streams) * (tokens - 1) / (max(stream.events[-1] for stream in streams) - begin)


def weight_bytes(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/stats", timeout=30) as response:
        stats: dict[str, Any] = json.load(response)
    return int(stats["replicas"][0]["weight_bytes"])


def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Return the speed of a server that is ready."""
    source = random.Random(0)
    complete(server, [prompt_of(PROMPTS[0], source)], 2)  # to warm up
    first: dict[str, list[float]] = {str(count): [] for count in PROMPTS}
    speed: dict[str, list[float]] = {"1": [], str(options.streams): []}
    for _ in range(options.rounds):
        for count in PROMPTS:
            first[str(count)].append(first_token(complete(server, [prompt_of(count, source)], 1)))
        for streams in speed:
            prompts = [prompt_of(32, source) for _ in range(int(streams))]
            speed[streams].append(decode_speed(complete(server, prompts, options.tokens), options.tokens))
    figures: dict[str, Any] = {"ttft_s": first, "tok_s": speed}
    if options.longest:
        streams = complete(server, [prompt_of(options.longest, source)], 8)
        figures["longest"] = {"ttft_s": first_token(streams), "tok_s": decode_speed(streams, 8)}
    return figures


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start the server --starts times and measure the last one."""
    log = options.out.with_suffix(".log")
    ready = []
    bandwidth = roofline.measure(os.cpu_count() or 1)["read_gb_s"]
    for start in range(options.starts):
        server = Server(settings(options), options.port, log, options.load_seconds)
        ready.append(round(server.ready_s, 1))
        print(f"{options.checkpoint}: ready after {ready[-1]} s", file=sys.stderr, flush=True)
        if start < options.starts - 1:
            server.close()
            time.sleep(2)
    try:
        figures = measure(server, options)
        memory = {name: round(mib) for name, mib in server.memory("Generator").items()}
        weights = weight_bytes(server)
    finally:
        server.close()
    bandwidth = max(bandwidth, roofline.measure(os.cpu_count() or 1)["read_gb_s"])
    name = f"{Path(options.checkpoint).name} {options.quantization}"
    about = {"model": name, "ready_s": ready, "memory_mib": memory, "weight_bytes": weights, "read_gb_s": bandwidth}
    of_memory = statistics.median(figures["tok_s"]["1"]) * weights / bandwidth / 1e9
    return {**about, "of_memory": round(of_memory, 3), **figures}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the server's settings: the defaults, but speculation and prefixes would measure something else."""
    engine: dict[str, Any] = {"speculation": "none", "prefix_caching": False, "max_num_seqs": options.streams}
    engine["compilation_cache_dir"] = str(options.cache / "programs")
    return {
        "model": options.checkpoint,
        "served_model_name": "model",
        "quantization": options.quantization,
        "quantization_cache_dir": str(options.cache / "packed"),
        "max_model_len": options.max_model_len,
        "engine": {**engine, **({"cache_dtype": options.cache_dtype} if options.cache_dtype else {})},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder")
    parser.add_argument("--quantization", default="none", choices=("none", "int8", "int4"))
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="of packed weights and programs")
    parser.add_argument("--cache-dtype", help="of keys and values")
    parser.add_argument("--max-model-len", type=int, help="(default: the model's, as far as memory allows)")
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=int, metavar="N", help="also measure one prompt of N ids")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--load-seconds", type=float, default=600.0)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines are appended here")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `finally`: the server does not end by itself
    figures = run(options)
    with options.out.open("a") as file:
        file.write(json.dumps(figures) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
