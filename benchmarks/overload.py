"""Measure what becomes of a server when it is asked for more than it can do, or by clients that mean harm.

python benchmarks/overload.py [CHECKPOINT] [--parts load bodies] [--seconds 12]

Starts `mpt-serve run` with capacity for --capacity requests and prints a table for each part.

load: as many clients as the capacity, which gives the peak; then --times as many that return when Retry-After says, or
after --pause seconds whatever it says, and four times as many of those that return at once. Compared with the mean of
the peaks before and after.

 tok/s, of peak    generated tokens per second by the engine's counter, and their share of the peak
 refusals/s        responses with 503
 CPU per refusal   CPU time of all processes of the server, less what the same tokens cost at the peak, over the
                   refusals; then that of Serve's proxy, where almost all of them are made
 p50, p99          of accepted requests, from sending to the last byte, in seconds
 /health           p50 and p99 of GET /health, ten times a second, in milliseconds
 Retry-After       10th, 50th and 90th percentile, in seconds

bodies: --streams streams of completions, first undisturbed, then while --senders connections send one kind of body as
fast as they are answered.

 gap p99, TTFT     of the streams, in milliseconds, the change against the mean of the undisturbed runs before and after
 bodies/s          answered, with their statuses

The clients run on the same machine, so figures in seconds depend on its number of cores; shares and CPU times less so.
"""

import argparse
import json
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hostile_bodies import hostile_bodies
from load_clients import Figures, Role, percentile, request, run_roles
from started_server import Server

WARM_UP_S = 4.0


class Measured:
    """What happened while some clients were active: their figures, and the server's counters."""

    def __init__(self, server: Server, roles: Sequence[Role]) -> None:
        cpu, tokens = server.cpu_seconds(), _generated(server.url)
        self.clients = run_roles(roles)
        used = server.cpu_seconds()
        self.seconds = roles[0].seconds
        self.tokens = _generated(server.url) - tokens
        self.cpu = {kind: used[kind] - cpu.get(kind, 0.0) for kind in used}


def _generated(url: str) -> int:
    with urllib.request.urlopen(f"{url}/stats", timeout=60) as response:
        return sum(replica["generated_tokens"] for replica in json.load(response)["replicas"])


def load(server: Server, options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the part `load`."""
    bodies = [
        request(server.url, "/v1/completions", {**_completion(options.tokens), "prompt": f"Once upon a time {number}"})
        for number in range(64)
    ]
    health = Role("health", server.url, [request(server.url, "/health")], 1, options.seconds, pause_s=0.1)

    def clients(count: int, **how: Any) -> list[Role]:
        return [Role("load", server.url, bodies, count, options.seconds, **how), health]

    run_roles([Role("load", server.url, bodies, options.capacity, WARM_UP_S)])
    many = options.times * options.capacity
    cases: dict[str, list[Role]] = {
        f"{many} that obey Retry-After": clients(many, patience=1.0),
        f"{many} that return after {options.pause:g} s": clients(many, pause_s=options.pause),
        f"{4 * many} that return at once": clients(4 * many, spread_s=2.0),
    }
    rows = [["clients", "tok/s", "of peak", "refusals/s", "CPU us per refusal: all, proxy", "p50, p99"]]
    rows[0] += ["/health", "Retry-After", "other", "clients' CPU"]
    before = Measured(server, clients(options.capacity))
    for name, roles in cases.items():
        case, after = Measured(server, roles), Measured(server, clients(options.capacity))
        rows.append(_load_row(f"{options.capacity}: the peak", before, [before]))
        rows.append(_load_row(name, case, [before, after]))
        before = after
    rows.append(_load_row(f"{options.capacity}: the peak", before, [before]))
    return rows


def _load_row(name: str, case: Measured, peaks: Sequence[Measured]) -> list[str]:
    seen, health = case.clients["load"], case.clients["health"]
    peak = statistics.mean(peak.tokens for peak in peaks)
    cost = "-"
    if seen.refused:
        usual = {kind: statistics.mean(peak.cpu.get(kind, 0.0) for peak in peaks) for kind in case.cpu}
        extra = {kind: seconds - case.tokens / peak * usual[kind] for kind, seconds in case.cpu.items()}
        cost = f"{1e6 * sum(extra.values()) / seen.refused:.0f}, {1e6 * extra['ProxyActor'] / seen.refused:.0f}"
    return [
        name,
        f"{case.tokens / case.seconds:,.0f}",
        f"{100 * case.tokens / peak:.0f} %",
        f"{seen.refused / case.seconds:,.0f}",
        cost,
        _numbers(seen.latency, (0.5, 0.99), 1, 2),
        _numbers(health.latency, (0.5, 0.99), 1000, 0) + " ms",
        _numbers(seen.retry_after, (0.1, 0.5, 0.9), 1, 2) if seen.refused else "-",
        _others(seen),
        f"{seen.cpu / case.seconds:.2f}",
    ]


def bodies(server: Server, options: argparse.Namespace) -> list[list[str]]:
    """Return the rows of the part `bodies`."""
    own = [request(server.url, "/v1/completions", {**_completion(options.tokens), "stream": True})]

    def disturbed_by(name: str | None) -> Measured:
        roles = [Role("streams", server.url, own, options.streams, options.seconds)]
        if name is not None:
            path, body = kinds[name]
            sent = [request(server.url, path, body)]
            roles.append(Role("hostile", server.url, sent, options.senders, options.seconds))
        return Measured(server, roles)

    kinds = hostile_bodies()
    chosen = [name for name in kinds if not options.kinds or any(part in name for part in options.kinds)]
    run_roles([Role("streams", server.url, own, options.streams, WARM_UP_S)])
    rows = [["bodies", "gap p50, p99", "gap p99 +", "TTFT p50, p99", "TTFT p50 +", "tok/s", "bodies/s", "statuses"]]
    rows[0] += ["CPU cores: proxy, Ingress, Tokenizer", "memory of the proxy, Ingress, Tokenizer in MiB"]
    before = disturbed_by(None)
    for name in chosen:
        case, after = disturbed_by(name), disturbed_by(None)
        rows.append(_body_row("(none)", before, [before], server))
        rows.append(_body_row(name, case, [before, after], server))
        before = after
    rows.append(_body_row("(none)", before, [before], server))
    return rows


def _body_row(name: str, case: Measured, calm: Sequence[Measured], server: Server) -> list[str]:
    streams, hostile = case.clients["streams"], case.clients.get("hostile", Figures())

    def growth(what: str, share: float) -> str:
        usual = statistics.mean(percentile(getattr(other.clients["streams"], what), share) for other in calm)
        return f"{1000 * (percentile(getattr(streams, what), share) - usual):+.0f}"

    kinds = ("ProxyActor", "Ingress", "Tokenizer")
    return [
        name,
        _numbers(streams.gaps, (0.5, 0.99), 1000, 1),
        growth("gaps", 0.99),
        _numbers(streams.ttft, (0.5, 0.99), 1000, 0),
        growth("ttft", 0.5),
        f"{case.tokens / case.seconds:,.0f}",
        f"{(hostile.served + hostile.refused + sum(hostile.other.values())) / case.seconds:.1f}",
        f"{hostile.served} x 200, {hostile.refused} x 503, {_others(hostile)}",
        ", ".join(f"{case.cpu.get(kind, 0.0) / case.seconds:.2f}" for kind in kinds),
        ", ".join(f"{server.memory_mib(kind):.0f}" for kind in kinds),
    ]


def _others(figures: Figures) -> str:
    counts = {**figures.other, **({"broken": figures.broken} if figures.broken else {})}
    return ", ".join(f"{count} x {what}" for what, count in counts.items()) or "-"


def _numbers(values: Sequence[float], shares: Sequence[float], factor: float, digits: int) -> str:
    return ", ".join(f"{factor * percentile(values, share):.{digits}f}" for share in shares)


def _completion(tokens: int) -> dict[str, Any]:
    return {"prompt": "Once upon a time", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="embedded", help="a folder, or 'embedded' (default)")
    parser.add_argument("--parts", nargs="+", choices=("load", "bodies"), default=["load", "bodies"])
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of each completion (default: %(default)s)")
    parser.add_argument("--capacity", type=int, default=64, help="limits.max_waiting_requests (default: %(default)s)")
    parser.add_argument("--times", type=int, default=10, help="clients over capacity (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=0.2, help="of impatient clients (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", default=[], help="of bodies: parts of their names (default: all)")
    parser.add_argument("--port", type=int, default=8125)
    parser.add_argument("--load-seconds", type=float, default=300.0)
    options = parser.parse_args()
    args = {
        "model": options.checkpoint,
        "served_model_name": "model",
        "engine": {"speculation": "none", "prefix_caching": False, "max_num_seqs": 32},
        "limits": {"max_waiting_requests": options.capacity},
    }
    if options.checkpoint == "embedded":
        args["chat_template"] = "dolly"
    with tempfile.TemporaryDirectory() as folder:
        server = Server(args, options.port, Path(folder) / "server.log", options.load_seconds)
        try:
            for part in options.parts:
                rows = {"load": load, "bodies": bodies}[part](server, options)
                rows.insert(1, ["---"] * len(rows[0]))
                print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)
        finally:
            server.close()
            print((Path(folder) / "server.log").read_text()[-2000:], file=sys.stderr)


if __name__ == "__main__":
    main()
