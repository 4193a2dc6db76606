"""Python in the documentation: docs/notebook.ipynb with its outputs, and the calls of README.md."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CELLS = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]


def test_the_notebook_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    numbers = []
    for cell in CELLS:
        if cell["cell_type"] != "code":
            continue
        numbers.append(cell["execution_count"])
        exec(compile("".join(cell["source"]), "docs/notebook.ipynb", "exec"), names)
        shown = "".join("".join(output["text"]) for output in cell["outputs"])
        assert capsys.readouterr().out == shown, f"cell {cell['execution_count']}"
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_calls_of_the_readme_work(capsys: pytest.CaptureFixture[str]) -> None:
    """With the model of the package, of which programs are compiled when they are needed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    library, flax = re.findall(r"^```python\n((?:from mpt_serve|import jax).*?)^```$", text, re.MULTILINE | re.DOTALL)
    library = library.replace("max_num_seqs=16", "pre_compile=False")
    exec(compile(library.replace("/models/mpt-7b", "embedded"), "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 20
    names = {"input_ids": [[1, 2, 3]]}
    embedded = str(ROOT / "mpt_serve" / "embedded")
    exec(compile(flax.replace("/models/mpt-7b", embedded), "README.md", "exec"), names)
    assert getattr(names["logits"], "shape", None) == (1, 3, 1728)
