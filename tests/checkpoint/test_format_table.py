"""The table of formats in docs/formats.md says what happens: each row is written, read and converted here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from flax_writer import write_easydel
from ft_writer import write_fastertransformer
from safetensors.numpy import save_file
from tiny_model import TINY, checkpoint_arrays
from torch_writer import dense_view, write_arrays, write_zip

from model.checkpoint.convert import Checkpoint, write_safetensors
from model.checkpoint.convert_gguf import GGUF_TYPES, write_gguf
from model.checkpoint.convert_orbax import write_orbax
from model.checkpoint.stored_tensor import read_whole

DOCS = Path(__file__).parents[2] / "docs" / "formats.md"
MODEL = {**TINY, "d_model": 64, "attn_config": {"alibi": True}}  # rows of whole blocks
Arrays = dict[str, np.ndarray]
Writer = Callable[[Path], tuple[Path, Arrays]]  # writes to a folder -> the checkpoint, and its numbers


def safetensors(folder: Path) -> tuple[Path, Arrays]:
    arrays = checkpoint_arrays(MODEL)
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder, arrays


def pytorch(folder: Path) -> tuple[Path, Arrays]:
    arrays = checkpoint_arrays(MODEL)
    write_arrays(folder / "pytorch_model.bin", arrays)
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder, arrays


def composer(folder: Path) -> tuple[Path, Arrays]:
    arrays = checkpoint_arrays(MODEL)
    views = {f"model.{name}": dense_view(name, array) for name, array in arrays.items()}
    state = {"state": {"model": views, "optimizers": {"Adam": {"state": views}}}}
    write_zip(folder / "ep0-ba1-rank0.pt", state, {name: array.tobytes() for name, array in arrays.items()})
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder, arrays


def easydel(layout: str) -> Writer:
    return lambda folder: (folder, write_easydel(folder, layout))


def fastertransformer(folder: Path) -> tuple[Path, Arrays]:
    return folder, write_fastertransformer(folder, devices=2)


def converted(form: str, kind: str | None = None) -> Writer:
    """Return a writer that converts a checkpoint of safetensors."""

    def write(folder: Path) -> tuple[Path, Arrays]:
        (folder / "source").mkdir()
        path, arrays = safetensors(folder / "source")
        source = Checkpoint.open(path)
        if form == "gguf" and kind is not None:
            write_gguf(source, folder / "m.gguf", kind)
            return folder / "m.gguf", arrays
        if form == "orbax":
            write_orbax(source, folder / "out")
        else:
            write_safetensors(source, folder / "out", form)
        return folder / "out", arrays

    return write


class Row(NamedTuple):
    """A row of the table. write: makes a checkpoint in the format, by conversion where the table says `--to`."""

    name: str
    out: str
    write: Writer


ROWS = [
    Row("safetensors, llm-foundry's form", "`--to llm-foundry`", safetensors),
    Row("safetensors, transformers' form", "`--to transformers`", converted("transformers")),
    Row("PyTorch `.bin`", "", pytorch),
    Row("Composer `.pt`", "", composer),
    Row("EasyDeL, msgpack", "", easydel("stream")),
    Row("EasyDeL, safetensors", "", easydel("safetensors")),
    Row("Flax `flax_model.msgpack`", "", easydel("whole")),
    Row("FasterTransformer", "", fastertransformer),
    Row("Orbax", "`--to orbax`", converted("orbax")),
    *(Row(f"GGUF `{kind}`", f"`--type {kind}`", converted("gguf", kind)) for kind in GGUF_TYPES),
]


def largest_error(path: Path, arrays: Arrays) -> float:
    """Return the largest error of a checkpoint's numbers, relative to each array's largest."""
    checkpoint = Checkpoint.open(path)
    errors = [0.0]
    for source in checkpoint.sources:
        expected = arrays[source.spec.name]
        found = read_whole(source.parts[0]).astype(np.float32)
        errors.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
    return max(errors)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_table_says_what_happens(tmp_path: Path, row: Row) -> None:
    error = largest_error(*row.write(tmp_path))
    exact = "yes" if error == 0 else "rounded"
    assert error < 0.2  # of 4 bits
    line = f"| {row.name} | yes | {row.out} | {exact} |"
    assert line in DOCS.read_text(encoding="utf-8").splitlines()


def test_the_table_has_a_row_for_each_format() -> None:
    """Those that are not in `ROWS` have numbers of other formats, which their own tests compare."""
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index("| format | in | out | exact |") :].split("\n\n")[0].splitlines()[2:]
    names = [line.split("|")[1].strip() for line in table]
    others = {"GGUF k-quants, `iq`, `tq`, `mxfp4`, `nvfp4`", "GPTQ, AWQ", "PEFT LoRA"}
    assert set(names) == {row.name for row in ROWS} | others
    assert len(names) == len(set(names))
