"""Measure what a client of a server gets while another one sends ten times as much: fairness between API keys.

python benchmarks/fairness.py [CHECKPOINT] [--heavy 40] [--light 4] [--seconds 12]

Starts `mpt-serve run` with API keys and prints a table. The light key's clients run alone, then beside the heavy key's,
in turn, --rounds times; at the end both use one key, as if there were no shares. Every client sends its next request as
soon as its response has ended, so that with --heavy clients all sequences (--sequences) are always in use, and all
processors; with --pause it waits before that, so that the load may be one that the machine has capacity for.

 TTFT p50, p95     of each key's streams, from sending to the first event, in milliseconds
 x alone           the p95 over that of the same clients alone, the mean of the runs before and after
 gap p50, p99      between two events of a stream, in milliseconds
 tok/s             the key's tokens; a response that the end of the measurement cuts off does not count
 other             responses with other statuses than 200

The clients run on the same machine.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from load_clients import Figures, Role, percentile, request, run_roles
from started_server import Server

from mpt_serve.access.api_key import append_line, new_key

WARM_UP_S = 4.0
HEADER = ["clients", "key", "TTFT p50, p95", "x alone", "gap p50, p99", "tok/s", "other"]


class Measurement:
    """The clients of one server, which send completions of some tokens with the keys of `keys`, by name."""

    def __init__(self, server: Server, keys: Mapping[str, str], options: argparse.Namespace) -> None:
        self._server = server
        self._keys = keys
        self._options = options
        self._counts = {"light": options.light, "heavy": options.heavy}

    def run(self, roles: Mapping[str, str], seconds: float) -> dict[str, Figures]:
        """Return what clients saw. roles: the names of those that run, each with the name of the key that it uses."""
        pause = self._options.pause
        return run_roles(
            [
                Role(
                    name, self._server.url, self._bodies(name, key), self._counts[name], seconds, pause, spread_s=pause
                )
                for name, key in roles.items()
            ]
        )

    def row(self, clients: str, name: str, seen: Figures, alone: Sequence[Figures]) -> list[str]:
        """Return the row of one role."""
        usual = statistics.mean(percentile(each.ttft, 0.95) for each in alone) if alone else float("nan")
        others = {**seen.other, **({503: seen.refused} if seen.refused else {})}
        return [
            clients,
            name,
            _milliseconds(seen.ttft, (0.5, 0.95)),
            f"{percentile(seen.ttft, 0.95) / usual:.2f}" if alone else "-",
            _milliseconds(seen.gaps, (0.5, 0.99)),
            f"{seen.served * self._options.tokens / self._options.seconds:,.0f}",
            ", ".join(f"{count} x {status}" for status, count in others.items()) or "-",
        ]

    def _bodies(self, name: str, key: str) -> list[bytes]:
        body = {"max_tokens": self._options.tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        words = " ".join(["word"] * self._options.words)
        return [
            request(
                self._server.url,
                "/v1/completions",
                {**body, "prompt": f"{name} {number} {words}"},
                self._keys[key],
            )
            for number in range(64)
        ]


def measure(measurement: Measurement, rounds: int, seconds: float) -> list[list[str]]:
    """Return the rows of the table."""
    measurement.run({"light": "light", "heavy": "heavy"}, WARM_UP_S)
    rows = []
    before = measurement.run({"light": "light"}, seconds)["light"]
    cases = [("with a key each", "heavy")] * rounds + [("with one key", "light")]
    for name, key in cases:
        rows.append(measurement.row("alone", "light", before, []))
        both = measurement.run({"light": "light", "heavy": key}, seconds)
        after = measurement.run({"light": "light"}, seconds)["light"]
        rows.append(measurement.row(name, "light", both["light"], [before, after]))
        rows.append(measurement.row(name, "heavy", both["heavy"], []))
        before = after
    return rows


def _milliseconds(values: Sequence[float], shares: Sequence[float]) -> str:
    return ", ".join(f"{1000 * percentile(values, share):.1f}" for share in shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="embedded", help="a folder, or 'embedded' (default)")
    parser.add_argument("--quantization", default="none", help="of the weights (default: %(default)s)")
    parser.add_argument("--light", type=int, default=4, help="clients of the light key (default: %(default)s)")
    parser.add_argument("--heavy", type=int, default=40, help="clients of the heavy key (default: %(default)s)")
    parser.add_argument("--sequences", type=int, default=32, help="engine.max_num_seqs (default: %(default)s)")
    parser.add_argument("--words", type=int, default=32, help="of each prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of each completion (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two requests of a client")
    parser.add_argument("--interval", type=int, default=10, help="limits.stream_interval_ms (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--port", type=int, default=8126)
    parser.add_argument("--load-seconds", type=float, default=300.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = {}
        for name in ("light", "heavy"):
            keys[name], record = new_key(name)
            append_line(Path(folder) / "keys", record)
        args: dict[str, Any] = {
            "model": options.checkpoint,
            "served_model_name": "model",
            "quantization": options.quantization,
            "engine": {"speculation": "none", "prefix_caching": False, "max_num_seqs": options.sequences},
            "access": {"key_file": str(Path(folder) / "keys")},
            "limits": {"stream_interval_ms": options.interval},
        }
        if options.checkpoint == "embedded":
            args["chat_template"] = "dolly"
        server = Server(args, options.port, Path(folder) / "server.log", options.load_seconds)
        try:
            rows = measure(Measurement(server, keys, options), options.rounds, options.seconds)
            print("\n".join(f"| {' | '.join(row)} |" for row in [HEADER, ["---"] * len(HEADER), *rows]), flush=True)
        finally:
            server.close()
            print((Path(folder) / "server.log").read_text()[-2000:], file=sys.stderr)


if __name__ == "__main__":
    main()
