"""Run a server under faults and overload, and count responses that are wrong or lost.

python benchmarks/chaos.py --minutes 5 --out FOLDER [--seed 1] [--faults kill-generator overload ...]

Starts `mpt-serve run` with two Generators. Records the response of each of --requests different requests while nothing
else runs. Then --streams clients send these requests again, at random and without a pause, while faults come one after
the other, chosen at random: processes are killed or stopped (SIGSTOP), new versions are deployed, good and bad, and
other clients overload the server, send bodies that are hostile, or vanish. `--help` lists the faults. Each response
must be the same as the recorded one.

 right        the recorded response
 refused      503 in the API's form, before anything of the response
 wrong        a complete response with another content
 lost         anything else: a connection that was closed, a response without its end, any other error
 broken off   a stream that ended with an error event and [DONE]; only where an Ingress is killed

Ends with these counts, what each fault did, and what the processes hold before and after: descriptors, threads, memory,
blocks of the KV cache. The exit status is 1 if a response was wrong or lost, a block is missing, or a kind of process
holds much more than before.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from chaos_requests import Client, Outcome, Request, catalogue, parse
from chaos_server import ChaosServer

START_S = 300.0
MAY_GROW = {"descriptors": 32, "threads": 32, "mib": 200}  # of all processes of a kind together


class Run:
    """One server, its load, and what came of it."""

    def __init__(self, options: argparse.Namespace, server: ChaosServer) -> None:
        self.options = options
        self.server = server
        self.source = random.Random(options.seed)
        self.client = Client("127.0.0.1", server.port, options.timeout)
        self.requests = catalogue(options.requests, self.source)
        self.expected: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.details: list[str] = []
        self.began = time.monotonic()
        self.stopping = False

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"{time.monotonic() - self.began:7.1f}  {text}", flush=True)

    def count(self, request: Request, outcome: Outcome) -> None:
        """Count what became of a request."""
        kind, detail = outcome.kind, outcome.detail
        if kind == "complete":
            kind = "right" if outcome.content == self.expected[request.name] else "wrong"
            detail = f"{outcome.content}\n  instead of {self.expected[request.name]}"
        self.counts[kind] += 1
        if kind == "refused":
            self.counts[f"refused: {detail}"] += 1
        elif kind != "right":
            self.details.append(f"{time.monotonic() - self.began:.1f} {kind}: {request.name}: {detail}")
            self.say(self.details[-1][:400])

    async def record(self) -> None:
        """Record the response of each request alone, then check that all together give the same."""
        for request in self.requests:
            outcome = await self.client.send(request)
            if outcome.kind != "complete":
                raise RuntimeError(f"{request.name} alone: {outcome}")
            self.expected[request.name] = outcome.content
        await self.together()
        self.say(f"recorded {len(self.expected)} responses; together: {dict(self.counts)}")

    async def together(self) -> None:
        """Send each request once, all at the same time."""
        outcomes = await asyncio.gather(*(self.client.send(request) for request in self.requests))
        for request, outcome in zip(self.requests, outcomes, strict=True):
            self.count(request, outcome)

    async def stream(self, number: int) -> None:
        """Send requests one after the other until the run ends."""
        source = random.Random(f"{self.options.seed} {number}")
        while not self.stopping:
            request = source.choice(self.requests)
            outcome = await self.client.send(request)
            self.count(request, outcome)
            if outcome.kind != "complete":
                await asyncio.sleep(source.uniform(0.2, 2.0))

    async def wait_ready(self, seconds: float) -> float:
        """Wait until /ready says 200 and all Generators run, and return how long that took. Raises RuntimeError."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            if self.server.process.poll() is not None:
                raise RuntimeError(f"the server ended; see {self.server.log}")
            running = len(self.server.pids("Generator"))
            if running == self.options.generators and await self.client.status("/ready") == 200:
                return time.monotonic() - begun
            await asyncio.sleep(0.5)
        raise RuntimeError(f"not ready after {seconds:g} s; see {self.server.log}")

    async def idle_stats(self) -> list[dict[str, Any]]:
        """Return the Generators' counters when they have nothing to do. Raises RuntimeError after a minute."""
        for _ in range(120):
            try:
                stats = await self.client.stats()
            except (OSError, ValueError):
                stats = []
            if len(stats) == self.options.generators and not any(s["running"] + s["waiting"] for s in stats):
                return stats
            await asyncio.sleep(0.5)
        raise RuntimeError(f"still busy: {stats}")


# The faults


async def kill(run: Run, kind: str) -> str:
    """Kill one process of a kind."""
    pids = run.server.pids(kind)
    if not pids:
        return "none runs"
    pid = run.source.choice(pids)
    os.kill(pid, signal.SIGKILL)
    return f"killed {pid}"


async def freeze(run: Run, kind: str) -> str:
    """Stop one process of a kind: for some seconds, or until the server has replaced it."""
    pids = run.server.pids(kind)
    if not pids:
        return "none runs"
    pid, begun = run.source.choice(pids), time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    if run.source.random() < 0.4:
        seconds = run.source.uniform(0.5, 5)
        await asyncio.sleep(seconds)
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return f"stopped {pid}, which was replaced within {seconds:.1f} s"
        return f"stopped {pid} for {seconds:.1f} s"
    while time.monotonic() - begun < 90:
        if pid not in run.server.pids(kind):
            return f"stopped {pid}, which was replaced after {time.monotonic() - begun:.1f} s"
        await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGCONT)
    run.counts["never replaced"] += 1
    return f"stopped {pid}, which was not replaced within 90 s"


async def deploy_good(run: Run) -> str:
    """Deploy the same model with another limit."""
    config = run.server.config(limits={"max_prompts": run.source.randrange(100, 200)})
    return await run.server.deploy(config)


async def deploy_bad(run: Run) -> str:
    """Deploy what cannot start."""
    bad = run.source.choice(
        [
            {"import_path": "mpt_serve.ap:build"},
            {"modle": "x"},
            {"model": "/no/such/folder"},
            {"chat_template": "dolly.jinja"},
            {"dtype": "float17"},
        ]
    )
    status = await run.server.deploy(run.server.config(**bad))
    run.counts["bad deploys that ran"] += status == "RUNNING"
    return f"{bad}: {status}"


async def overload(run: Run) -> str:
    """Send many requests at once."""
    requests = [run.source.choice(run.requests) for _ in range(400)]
    before = Counter(run.counts)

    async def one(request: Request) -> None:
        run.count(request, await run.client.send(request))

    await asyncio.gather(*map(one, requests))
    return f"400 requests; counts meanwhile {dict(run.counts - before)}"


async def hostile(run: Run) -> str:
    """Send bodies as large, as deep and as wrong as they come."""
    completion, size = "/v1/completions", 4 << 20
    bodies = [
        (completion, b'{"prompt": "' + b"the cat sat " * (size // 12 - 10) + b'"}', ""),
        ("/tokenize", b'{"prompt": "' + b"a" * (1 << 19) + b'"}', ""),
        (completion, b"[" * 100_000, ""),
        (completion, b'{"prompt": ' + b"[[1]," * 60_000 + b"1]}", ""),
        (completion, b'{"prompt": "x", "max_tokens": "\xff"}', ""),
        (
            completion,
            b'{"prompt": "x", "max_tokens": 0.5}',
            "x-request-id: \x01\r\n",
        ),
        (completion, b'{"prompt": "x", "response_format": {"type": "regex", "pattern": "(a*)*(b*)*["}}', ""),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": {"a": 1}}]}', ""),
        (completion, json.dumps({"prompt": ["x"] * 5000}).encode(), ""),
    ]
    answers: Counter[str] = Counter()

    async def one(path: str, body: bytes, headers: str) -> None:
        try:
            async with asyncio.timeout(run.options.timeout):
                status, content, complete = parse(await run.client.exchange(path, body, headers))
            answers[f"{status}" if complete else f"{status}, cut"] += 1
            if status >= 500 and outcome_of_status(status, content) != "refused":
                run.details.append(f"hostile: {body[:60]!r}: {status} {content[:300]!r}")
                run.counts["hostile bodies that failed the server"] += 1
        except (OSError, TimeoutError, ValueError) as error:
            answers[type(error).__name__] += 1

    async def unfinished() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", run.server.port)
        writer.write(run.client.head(completion, 1000) + b'{"prompt": ')
        await asyncio.sleep(run.source.uniform(1, 8))
        writer.transport.abort()

    work = [one(*run.source.choice(bodies)) for _ in range(24)]
    await asyncio.gather(*work, *(unfinished() for _ in range(50)))
    return f"{dict(answers)}"


def outcome_of_status(status: int, content: bytes) -> str:
    """Return "refused" for the API's own 503."""
    try:
        return "refused" if status == 503 and json.loads(content)["error"]["code"] else "failed"
    except (ValueError, KeyError, TypeError):
        return "failed"


async def vanish(run: Run) -> str:
    """Send requests and leave before or in the middle of their responses."""
    requests = [run.source.choice(run.requests) for _ in range(100)]
    await asyncio.gather(*(run.client.vanish(r, run.source.choice([1, 300, 2000, 20_000])) for r in requests))
    return "100 clients"


FAULTS: dict[str, tuple[int, Callable[[Run], Awaitable[str]]]] = {  # with how often each is chosen
    "kill-generator": (4, lambda run: kill(run, "Generator")),
    "freeze-generator": (3, lambda run: freeze(run, "Generator")),
    "kill-tokenizer": (2, lambda run: kill(run, "Tokenizer")),
    "freeze-tokenizer": (2, lambda run: freeze(run, "Tokenizer")),
    "kill-controller": (1, lambda run: kill(run, "ServeController")),
    "deploy-good": (2, deploy_good),
    "deploy-bad": (2, deploy_bad),
    "overload": (2, overload),
    "hostile": (2, hostile),
    "vanish": (2, vanish),
    "kill-ingress": (1, lambda run: kill(run, "Ingress")),
}
DEFAULT_FAULTS = [name for name in FAULTS if name != "kill-ingress"]


async def disturb(run: Run, until: float) -> None:
    """Cause one fault after the other until a time of the monotonic clock."""
    names = run.options.faults
    weights = [FAULTS[name][0] for name in names]
    while time.monotonic() < until:
        name = run.source.choices(names, weights)[0]
        run.say(f"{name} ...")
        begun = time.monotonic()
        try:
            result = await FAULTS[name][1](run)
        except ProcessLookupError:
            result = "it had just ended"
        run.counts[f"fault {name}"] += 1
        run.say(f"{name}: {result} ({time.monotonic() - begun:.1f} s)")
        await asyncio.sleep(run.source.uniform(1, run.options.pause))


async def chaos(run: Run) -> bool:
    """Return whether nothing was wrong or lost."""
    run.say(f"ready after {await run.wait_ready(START_S):.1f} s")
    await run.record()
    await run.idle_stats()
    before = run.server.usage()
    run.counts.clear()
    streams = [asyncio.create_task(run.stream(number)) for number in range(run.options.streams)]
    await disturb(run, time.monotonic() + 60 * run.options.minutes)
    run.stopping = True
    await asyncio.gather(*streams)
    run.say(f"the faults are over: all Generators run after {await run.wait_ready(START_S):.1f} s")
    await asyncio.sleep(5)
    await run.together()
    stats = await run.idle_stats()
    after = run.server.usage()
    return report(run, before, after, stats)


def report(run: Run, before: dict[str, Any], after: dict[str, Any], stats: list[dict[str, Any]]) -> bool:
    """Print the counts and what the processes hold; return whether all is as it should be."""
    good = True
    print("\nanswers and faults")
    for name, count in sorted(run.counts.items()):
        print(f"  {count:6d}  {name}")
    allowed = {"broken off"} if "kill-ingress" in run.options.faults else set()
    bad = {"wrong", "lost", "broken off", "never replaced", "bad deploys that ran"} - allowed
    bad.add("hostile bodies that failed the server")
    good = not any(run.counts[name] for name in bad)
    print("\nheld by the processes of each kind, before and after")
    for kind in sorted(before.keys() | after.keys()):
        old = collections.defaultdict(float, before.get(kind, {}))
        new = collections.defaultdict(float, after.get(kind, {}))
        names = ("processes", "descriptors", "threads", "mib")
        print(f"  {kind:16s} " + "  ".join(f"{name} {old[name]:.0f} -> {new[name]:.0f}" for name in names))
        grown = [name for name, more in MAY_GROW.items() if new[name] > old[name] + more]
        if grown or old["processes"] != new["processes"]:
            print(f"    more than before: {grown or 'processes'}")
            good = False
    missing = [stat["total_blocks"] - stat["free_blocks"] for stat in stats]
    print(f"\nblocks missing, by Generator: {missing}")
    (Path(run.options.out) / "details.txt").write_text("\n".join(run.details))
    return good and not any(missing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--requests", type=int, default=48, help="different requests (default: %(default)s)")
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument(
        "--faults", nargs="+", choices=FAULTS, default=DEFAULT_FAULTS, metavar="FAULT", help=" ".join(FAULTS)
    )
    parser.add_argument("--pause", type=float, default=10.0, help="longest pause between two faults, in seconds")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds after which a response counts as lost")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--port", type=int, default=8124)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True, metavar="FOLDER")
    options = parser.parse_args()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    server = ChaosServer(options.port, options.model, options.generators, folder)
    try:
        good = asyncio.run(chaos(Run(options, server)))
    finally:
        server.close()
    print("nothing was wrong or lost" if good else f"see {folder}/details.txt and {server.log}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
