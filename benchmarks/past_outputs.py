"""Measure drafts from past outputs on ordinary text: one request after the other, to three engines in turns.

python benchmarks/past_outputs.py [--layers 160] [--requests 12] [--quantization int8]

The requests are held-out prompts of the embedded model's training corpus, all tasks mixed, so that a request seldom
follows one of its own kind; names, words, sums and sentences differ from each other and from those in training. The
model has the embedded one's weights and layers after them that add zero: it generates the same ids, in the time that a
model of that size takes. Of the three engines one has no drafts, one copies from the request's own prompt and output
alone, and one from past outputs too. The first --warm-up requests are not counted.

Prints a table: tokens per second without drafts, the ratios of the other two (all tokens over all seconds), ids per
step of each, and whether all three gave the same ids, which they must.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EMBEDDED = Path(__file__).resolve().parents[1] / "mpt_serve" / "embedded"
ENGINES = ("none", "own", "past")
SEED, MAX_TOKENS = 77, 200


def write_deep_model(folder: Path, layers: int) -> None:
    """Write the embedded model with layers that add zero until there are `layers`."""
    config = json.loads((EMBEDDED / "config.json").read_text())
    first, width, inner = config["n_layers"], config["d_model"], config["d_model"] * config["expansion_ratio"]
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": layers}))
    zeros = {
        "attn.Wqkv": (3 * width, width),
        "attn.out_proj": (width, width),
        "ffn.up_proj": (inner, width),
        "ffn.down_proj": (width, inner),
    }
    tensors = read_tensors(EMBEDDED / "model.safetensors")
    dtype = tensors["transformer.wte.weight"].dtype
    for layer in range(first, layers):
        block = f"transformer.blocks.{layer}"
        tensors |= {f"{block}.{name}.weight": np.zeros(shape, dtype) for name, shape in zeros.items()}
        tensors |= {f"{block}.{name}.weight": np.ones(width, dtype) for name in ("norm_1", "norm_2")}
    save_file(tensors, folder / "model.safetensors")


def read_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a file, in bfloat16 too."""
    from safetensors.flax import load_file

    return {name: np.asarray(tensor) for name, tensor in load_file(file).items()}


@dataclass
class Sums:
    """What the requests of one task took in one engine."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0


@dataclass
class Task:
    """Requests of one task: by engine, and whether all gave the same ids."""

    sums: dict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    same: bool = True


def generate(engine: Any, prompt: Sequence[int], sums: Sums) -> tuple[int, ...]:
    """Generate greedily, add what it took from the first token on, and return the ids."""
    from mpt_serve.engine import SamplingParams

    ids: list[int] = []
    times: list[float] = []
    reasons: list[str] = []
    done = threading.Event()

    def listen(delta: Any) -> None:
        ids.extend(delta.token_ids)
        if delta.token_ids:
            times.append(time.perf_counter())
        if delta.finish_reason is not None:
            reasons.append(delta.finish_reason)
            done.set()

    engine.submit(prompt, SamplingParams(max_tokens=MAX_TOKENS, temperature=0), listen)
    done.wait()
    if reasons[0] not in ("stop", "length"):
        raise RuntimeError(f"a request ended with {reasons[0]!r}")
    sums.tokens += len(ids) - 1
    sums.seconds += times[-1] - times[0]
    sums.steps += len(times) - 1
    return tuple(ids)


def measure(engines: dict[str, Any], options: argparse.Namespace) -> dict[str, Task]:
    """Send every request to each engine, one after the other."""
    from training.corpus import DIALOGUES, draw_example

    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    requests = [(task, draw_example(SEED, i, task)) for task in DIALOGUES for i in range(options.requests)]
    random.Random(SEED).shuffle(requests)
    tasks: dict[str, Task] = defaultdict(Task)
    warm_up = Task()
    for number, (name, dialogue) in enumerate(requests):
        task = tasks[name] if number >= options.warm_up else warm_up
        prompt = tokenizer.encode(dialogue.prompt).ids
        first = number % len(engines)
        order = list(engines)[first:] + list(engines)[:first]
        outputs = {generate(engines[kind], prompt, task.sums[kind]) for kind in order}
        task.same = task.same and len(outputs) == 1
    if not warm_up.same:
        raise RuntimeError("the engines gave different ids")
    return tasks


def load(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the three engines over the same weights."""
    from model.kernel_selection import weight_format
    from model.pretrained import find_device, mpt_from_pretrained
    from mpt_serve.engine import Engine, EngineConfig

    weights, config = mpt_from_pretrained(folder, format=weight_format({find_device(None)}, options.quantization))
    settings = EngineConfig(max_num_seqs=4, max_num_batched_tokens=256, max_model_len=1024)
    changes: dict[str, dict[str, Any]] = {"none": {"speculation": "none"}, "own": {"past_output_tokens": None}}
    eos = json.loads((EMBEDDED / "generation_config.json").read_text())["eos_token_id"]
    eos_ids = eos if isinstance(eos, list) else [eos]
    return {
        name: Engine(weights, config, settings.replace(**changes.get(name, {})), eos_token_ids=eos_ids)
        for name in ENGINES
    }


def row(name: str, tasks: Sequence[Task]) -> str:
    """Return one line of the table."""
    sums = {kind: Sums() for kind in ENGINES}
    for task in tasks:
        for kind, own in task.sums.items():
            sums[kind].tokens += own.tokens
            sums[kind].seconds += own.seconds
            sums[kind].steps += own.steps
    rate = {kind: own.tokens / own.seconds if own.seconds else 0.0 for kind, own in sums.items()}
    per_step = {kind: own.tokens / max(1, own.steps) for kind, own in sums.items()}
    ratios = [
        f"{rate[kind] / rate['none']:.2f} ({per_step[kind]:.2f})" if rate["none"] else "-" for kind in ENGINES[1:]
    ]
    same = "yes" if all(task.same for task in tasks) else "NO"
    return f"| {name} | {rate['none']:,.0f} | {' | '.join(ratios)} | {same} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=160, help="of the model (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=12, help="of each task (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=100, help="requests that are not counted (default: %(default)s)")
    parser.add_argument("--quantization", default="none", choices=("none", "int8", "int4"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_deep_model(Path(folder), options.layers)
        engines = load(Path(folder), options)
        try:
            tasks = measure(engines, options)
        finally:
            for engine in engines.values():
                engine.close()
    print("| task | tok/s without drafts | own text, ratio (ids per step) | past outputs too | same ids |")
    print("| --- | --- | --- | --- | --- |")
    for name, task in sorted(tasks.items()):
        print(row(name, [task]))
    print(row("all", list(tasks.values())))


if __name__ == "__main__":
    main()
