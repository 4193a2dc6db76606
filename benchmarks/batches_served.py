"""Measure what a batch costs streams that somebody waits for, through HTTP and all processes of a server.

python benchmarks/batches_served.py [CHECKPOINT] [--pairs 4] [--seconds 7]

Starts `mpt-serve run` with a folder for batches. A few clients send completions with pauses between them; in every
second phase a batch with more requests than are computed meanwhile runs in the background. Phases of either kind follow
each other as pairs, each kind first in every second pair. Prints percentiles of the time to the first token and of the
gaps between tokens over all phases, the median of the pairs' ratios with the smallest and the largest, and how many
requests of the batches ended. The clients run on the same machine.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from load_clients import Figures, Role, percentile, request, run_roles
from started_server import Server

BATCH_REQUESTS = 6000
BATCH_TOKENS = 64
SHARES = (0.5, 0.9, 0.99)


class Batches:
    """The batches of one server: one file of requests, and at most one batch that runs."""

    def __init__(self, url: str, prompt: str) -> None:
        self._url = url
        self._batch: str | None = None
        body = {"max_tokens": BATCH_TOKENS, "ignore_eos": True}
        lines = "\n".join(
            json.dumps({"custom_id": str(number), "body": {**body, "prompt": f"{number} {prompt}"}})
            for number in range(BATCH_REQUESTS)
        )
        parts = [("purpose", "batch"), ('file"; filename="requests.jsonl', lines)]
        form = "".join(
            f'--border\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{content}\r\n' for name, content in parts
        )
        file = self._call("/v1/files", f"{form}--border--\r\n".encode(), "multipart/form-data; boundary=border")
        self._file = file["id"]

    def start(self) -> None:
        """Begin a batch, and wait a moment, so that it runs."""
        body = {"input_file_id": self._file, "endpoint": "/v1/completions", "completion_window": "24h"}
        self._batch = self._call("/v1/batches", json.dumps(body).encode())["id"]
        time.sleep(1.0)

    def stop(self) -> int:
        """End the batch, and return how many of its requests have a result."""
        batch = self._call(f"/v1/batches/{self._batch}/cancel", b"")
        while batch["status"] != "cancelled":
            time.sleep(0.1)
            batch = self._call(f"/v1/batches/{self._batch}")
        return int(batch["request_counts"]["completed"])

    def _call(self, path: str, data: bytes | None = None, content_type: str = "application/json") -> dict[str, Any]:
        call = urllib.request.Request(self._url + path, data, {"Content-Type": content_type})
        with urllib.request.urlopen(call, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


def phase(url: str, prompt: str, options: argparse.Namespace) -> Figures:
    """Return what the clients saw."""
    body = {"max_tokens": options.tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    bodies = [request(url, "/v1/completions", {**body, "prompt": f"a {number} {prompt}"}) for number in range(64)]
    pause = options.pause
    role = Role("clients", url, bodies, options.clients, options.seconds, pause, spread_s=pause)
    return run_roles([role])["clients"]


def compared(name: str, pairs: Sequence[dict[bool, Figures]]) -> list[str]:
    """Return lines about one kind of times, `ttft` or `gaps`."""
    lines = []
    for share in SHARES:
        without, beside = (
            1000 * percentile([value for pair in pairs for value in getattr(pair[kind], name)], share)
            for kind in (False, True)
        )
        ratios = [
            percentile(getattr(pair[True], name), share) / percentile(getattr(pair[False], name), share)
            for pair in pairs
        ]
        found = f"x {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(f"{name} p{100 * share:g}: {without:.2f} -> {beside:.2f} ms ({found})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="embedded", help="a folder, or 'embedded' (default)")
    parser.add_argument("--clients", type=int, default=3, help="that somebody waits for (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0.15, help="seconds between two requests of a client")
    parser.add_argument("--words", type=int, default=50, help="of each prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of each completion (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=7.0, help="of each phase (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--port", type=int, default=8127)
    parser.add_argument("--load-seconds", type=float, default=300.0)
    options = parser.parse_args()
    prompt = " ".join(["word"] * options.words)
    with tempfile.TemporaryDirectory() as folder:
        args: dict[str, Any] = {
            "model": options.checkpoint,
            "engine": {"speculation": "none", "prefix_caching": False, "max_num_seqs": 32},
            "batches": {"folder": str(Path(folder) / "batches")},
        }
        server = Server(args, options.port, Path(folder) / "server.log", options.load_seconds)
        try:
            batches = Batches(server.url, prompt)
            phase(server.url, prompt, options)  # warms up
            pairs: list[dict[bool, Figures]] = []
            completed = 0
            for number in range(options.pairs):
                pairs.append({})
                for beside in (False, True) if number % 2 else (True, False):
                    if beside:
                        batches.start()
                    pairs[-1][beside] = phase(server.url, prompt, options)
                    completed += batches.stop() if beside else 0
        finally:
            server.close()
    print("\n".join([*compared("ttft", pairs), *compared("gaps", pairs)]))
    print(f"{completed} requests of batches have a result")


if __name__ == "__main__":
    main()
