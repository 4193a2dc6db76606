"""Compare the engine with others on this machine, interleaved: each figure is measured next to the other engines'.

    python benchmarks/compare.py CHECKPOINT [CHECKPOINT ...] --match bf16 int8 int4 --out FOLDER

For each checkpoint and each match, every contender is loaded once. Then, round by round and shape by shape, each
runs while the others are stopped. Before and after, the machine's limits are measured (roofline.py). FOLDER
gets results.jsonl (one line per run, appended at once), table.md and, where matplotlib is installed, ratios.svg.

Each contender continues fixed prompts when it has loaded; the table says how many of its first ids are those of our
engine in float32, which is loaded alone before the first match on a checkpoint, once per FOLDER.

The other engines' environments and converted checkpoints are those of peers/environments.py.
"""

import argparse
import json
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import report
import roofline
from harness import Shape, checkpoint_weights
from worker import Worker, WorkerError

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "peers"))

from environments import add_work_option, python_of  # noqa: E402  (found beside the peers' scripts)

OURS = "mpt_serve"
REFERENCE = f"{OURS}:f32"  # the golden tests show that it computes what MosaicML's code does
MATCHES = {  # ours first, then those that hold their weights alike
    "bf16": ("mpt_serve:bf16", "vllm:bf16", "llama_cpp:bf16", "transformers:bf16"),
    "int8": ("mpt_serve:int8", "ctranslate2:int8", "openvino:int8", "llama_cpp:q8_0"),
    "int4": ("mpt_serve:int4", "openvino:int4", "llama_cpp:q4_0"),
    "f32": ("mpt_serve:f32", "transformers:f32"),
}
SHAPES = ("1:32:64", "8:32:64", "32:32:96", "1:512:1")
PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}  # what arithmetic the machine offers; integer weights: int8
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"


def command_of(contender: str, checkpoint: Path, options: argparse.Namespace) -> list[str | Path]:
    """Return the command of `name:dtype` for all shapes of this comparison."""
    name, dtype = contender.split(":")
    shapes = [str(shape) for shape in options.shapes]
    common: list[str | Path] = [checkpoint, *shapes, "--threads", str(options.threads)]
    if name == OURS:
        quantized = ["--quantization", dtype] if dtype in ("int8", "int4") else ["--dtype", dtype]
        compiled = ["--compilation-cache-dir", options.work / "jax"]
        own = shlex.split(options.engine_options)
        return [sys.executable, HERE / "engine.py", *common, *quantized, *compiled, *own]
    work = [] if name == "transformers" else ["--work", options.work]
    return [python_of(options.work, name), HERE / "peers" / f"run_{name}.py", *common, "--dtype", dtype, *work]


def share_of_limit(result: dict[str, Any], weights: dict[str, int], limits: roofline.Limits) -> dict[str, Any]:
    """Return the least time that this machine allows over the time taken, and which limit that is.

    Decoding steps read the weights once and multiply all rows with them. A prefill multiplies every token with the
    blocks' weights, but only the last of each row with the head. Keys, values and attention are not counted.
    """
    shape = Shape(result["batch"], result["prompt"], result["new"])
    head = weights.get(HEAD, weights[EMBEDDING])
    blocks = sum(weights.values()) - head - (weights[EMBEDDING] if HEAD in weights else 0)
    if shape.new > 1:
        seconds = shape.batch / result["decode_tok_s"]
        products = shape.batch * (blocks + head)
    else:
        seconds = result["ttft_s"]
        products = shape.batch * (shape.prompt * blocks + head)
    least, bound = limits.shortest(
        result["weight_bytes"], 2 * products, PRECISIONS.get(result["contender"].split(":")[1], "int8")
    )
    return {"share": round(least / seconds, 4), "bound": bound}


def log_of(checkpoint: Path, contender: str, options: argparse.Namespace) -> Path:
    folder: Path = options.out / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{checkpoint.resolve().name}-{contender.replace(':', '-')}.log"


def append(result: dict[str, Any], options: argparse.Namespace) -> None:
    with (options.out / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")


def reference_ids(checkpoint: Path, options: argparse.Namespace) -> list[list[int]] | None:
    """Return the reference's first ids: those among the results or, the first time, of a process that then ends.

    None where it did not load; the results then say so.
    """
    name = checkpoint.resolve().name
    kept = report.references(report.read(options.out)).get(name)
    if kept is not None:
        return kept
    result: dict[str, Any] = {"ckpt": name, "contender": REFERENCE}
    try:
        log = log_of(checkpoint, "reference", options)
        worker = Worker(command_of(REFERENCE, checkpoint, options), log, options.load_seconds)
    except (WorkerError, OSError) as error:
        result["error"] = f"no reference for the first ids: {error}"
    else:
        worker.close()
        result["reference_ids"] = worker.ready["first_ids"]
    append(result, options)
    return result.get("reference_ids")


class Comparison:
    """Turns of the contenders of one match on one checkpoint. expected: the reference's first ids, where known."""

    def __init__(
        self,
        checkpoint: Path,
        match: str,
        contenders: list[str],
        expected: list[list[int]] | None,
        options: argparse.Namespace,
    ) -> None:
        self._options = options
        self._weights = checkpoint_weights(checkpoint)
        self._same = {"match": match, "ckpt": checkpoint.resolve().name, "contenders": contenders}
        self._workers: dict[str, Worker] = {}
        self._latest: dict[str, float] = {}
        self._checkpoint = checkpoint
        self._contenders = contenders
        self._expected = expected

    def run(self) -> None:
        try:
            for contender in self._contenders:
                self._load(contender)
            self._limits()
            for turn in range(1, self._options.rounds + 1):
                for shape in self._options.shapes:
                    self._round(turn, shape)
        finally:
            for worker in self._workers.values():
                worker.close()

    def _load(self, contender: str) -> None:
        log = log_of(self._checkpoint, contender, self._options)
        started = time.perf_counter()
        try:
            command = command_of(contender, self._checkpoint, self._options)
            worker = self._workers[contender] = Worker(command, log, self._options.load_seconds)
        except (WorkerError, OSError) as error:
            self._write({"contender": contender, "error": f"not loaded: {error}"})
        else:
            loaded = f"loaded in {time.perf_counter() - started:.1f} s"
            counts = map(report.equal_ids, worker.ready["first_ids"], self._expected or ())
            print(f"{self._name(contender)} {loaded}, first equal ids: {[*counts] or 'unknown'}", file=sys.stderr)

    def _round(self, turn: int, shape: Shape) -> None:
        names = list(self._workers)
        first = turn % len(names) if names else 0
        results = []
        for contender in names[first:] + names[:first]:  # who goes first changes with the round
            result: dict[str, Any] = {"contender": contender, "round": turn, **shape._asdict()}
            try:
                result = self._workers[contender].ask(shape, turn, self._options.turn_seconds) | result
            except WorkerError as error:
                result["error"] = str(error)
                del self._workers[contender]
            results.append(result)
        limits = self._limits()
        for result in results:
            if "error" not in result:
                result |= share_of_limit(result, self._weights, roofline.Limits.of(limits))
            self._write(result | {"limits": limits})

    def _limits(self) -> dict[str, float]:
        """Measure the machine's limits, the better of now and the previous time: the runs were between the two."""
        before, self._latest = self._latest, roofline.measure(self._options.threads, repetitions=3)
        return {name: max(rate, before.get(name, rate)) for name, rate in self._latest.items()}

    def _write(self, result: dict[str, Any]) -> None:
        result = self._same | result
        append(result, self._options)
        where = f"round {result.get('round', '-')} {result.get('batch')}:{result.get('prompt')}:{result.get('new')}"
        speed = result.get("error") or f"{report.speed(result):.1f} tok/s, {result['share']:.0%} of {result['bound']}"
        print(f"{self._name(result['contender'])} {where}: {speed}", file=sys.stderr)

    def _name(self, contender: str) -> str:
        return f"{self._same['ckpt']} {contender}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--match", nargs="+", default=["bf16", "int8", "int4"], choices=MATCHES)
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="of a match's opponents, these alone")
    parser.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME:DTYPE",
        help="instead of --match: the first is compared with each other",
    )
    parser.add_argument(
        "--shapes", nargs="+", default=list(map(Shape.parse, SHAPES)), type=Shape.parse, metavar="B:P:N"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="a folder; results are appended to those in it")
    parser.add_argument(
        "--no-reference",
        dest="reference",
        action="store_false",
        help=f"count no equal ids: do without {REFERENCE}, which needs four bytes of memory per parameter",
    )
    parser.add_argument("--engine-options", default="", help="more options for engine.py, as one string")
    parser.add_argument("--load-seconds", type=float, default=900, help="time limit of a contender's loading")
    parser.add_argument("--turn-seconds", type=float, default=300, help="time limit of one turn, warm-up included")
    add_work_option(parser)
    options = parser.parse_args()
    if missing := [folder for folder in options.checkpoints if not checkpoint_weights(folder)]:
        parser.error(f"{missing[0]} has no safetensors files; make_checkpoints.py writes some")
    return options


def contenders_of(match: str, peers: list[str] | None) -> list[str]:
    ours, *others = MATCHES[match]
    return [ours, *(other for other in others if peers is None or other.split(":")[0] in peers)]


def main() -> None:
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.contenders:
        matches = {" / ".join(options.contenders): options.contenders}
    else:
        matches = {match: contenders_of(match, options.peers) for match in options.match}
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # by way of `finally`: stopped workers do not end by themselves
    for checkpoint in options.checkpoints:
        expected = reference_ids(checkpoint, options) if options.reference else None
        for match, contenders in matches.items():
            Comparison(checkpoint, match, contenders, expected, options).run()
    report.write(options.out)


if __name__ == "__main__":
    main()
