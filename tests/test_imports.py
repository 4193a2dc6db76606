"""The structure of the code: which package may import which, no circles, short modules and functions.

The table below is docs/architecture.md's diagram as data. All imports count, also those in functions and under
TYPE_CHECKING, so that no arrow is hidden.
"""

import ast
import statistics
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from source_tree import ROOT, Import, Module, product_modules

MODULES = product_modules()

_MODEL = {
    "model.ops": set(),
    "model.gguf": set(),
    "model.config": {"model.ops", "model.gguf"},
    "model.params": {"model.ops", "model.config"},
    "model.kernels": {"model.ops", "model.config", "model.params"},
    "model.layers": {"model.ops", "model.config", "model.params", "model.kernels"},
    "model.checkpoint": {"model.ops", "model.gguf", "model.config", "model.params", "model.kernels"},
    "model.sampling": {"model.ops", "model.config", "model.params", "model.kernels", "model.layers"},
}
_ALL_OF_MODEL = {"model", *_MODEL, "model.kernel_selection", "model.pretrained", "model.flax_module"}
_BASE = {"mpt_serve.errors", "mpt_serve.configuration", *_ALL_OF_MODEL}
_LIBRARY = {"mpt_serve.engine", "mpt_serve.text", "mpt_serve.structured_outputs", *_BASE}
_SERVING = {
    "mpt_serve.access",
    "mpt_serve.batches",
    "mpt_serve.deployments",
    "mpt_serve.openai",
    "mpt_serve.llm",
    "mpt_serve.one_loop",
    "mpt_serve.serve_logs",
    *_LIBRARY,
}

# A package or top-level module -> the packages and top-level modules that it may import.
ALLOWED: Mapping[str, set[str]] = {
    **_MODEL,
    "model.kernel_selection": set(_MODEL),
    "model.pretrained": {*_MODEL, "model.kernel_selection"},
    "model.flax_module": {*_MODEL, "model.kernel_selection", "model.pretrained"},
    "model": _ALL_OF_MODEL,
    "mpt_serve.errors": set(),
    "mpt_serve.child_process": set(),
    "mpt_serve.one_loop": set(),
    "mpt_serve.configuration": {"mpt_serve.errors", *_ALL_OF_MODEL},
    "mpt_serve.text": {"mpt_serve.child_process", *_BASE},
    "mpt_serve.structured_outputs": {"mpt_serve.child_process", *_BASE},
    "mpt_serve.engine": _BASE,
    "mpt_serve.llm": _LIBRARY,
    "mpt_serve.access": _BASE,
    "mpt_serve.openai": {"mpt_serve.access", "mpt_serve.batches", *_LIBRARY},
    "mpt_serve.deployments": _SERVING,
    "mpt_serve.driver": set(),
    "mpt_serve.graceful_run": set(),
    "mpt_serve.resources": {"mpt_serve.configuration", "mpt_serve.deployments"},
    "mpt_serve.rollout": {"mpt_serve.resources"},
    "mpt_serve.preflight": {"mpt_serve.access", "mpt_serve.resources", *_LIBRARY},
    "mpt_serve.conversion": {"mpt_serve.configuration", "mpt_serve.text", *_ALL_OF_MODEL},
    "mpt_serve.app": {"mpt_serve.driver", "mpt_serve.rollout", "mpt_serve.preflight", *_SERVING},
    "mpt_serve.serve_run": {"mpt_serve.graceful_run", "mpt_serve.start_display"},
    "mpt_serve.load_test": {"mpt_serve.errors"},
    "mpt_serve.batches": {"mpt_serve.errors", "model.checkpoint"},
    "mpt_serve.serve_logs": set(),
    "mpt_serve.start_display": {"mpt_serve.configuration", "mpt_serve.serve_logs"},
    "mpt_serve.commands": {  # the root has __version__
        "mpt_serve",
        "mpt_serve.access",
        "mpt_serve.batches",
        "mpt_serve.one_loop",
        "mpt_serve.conversion",
        "mpt_serve.configuration",
        "mpt_serve.errors",
        "mpt_serve.load_test",
        "mpt_serve.preflight",
        "mpt_serve.serve_logs",
        "mpt_serve.resources",
        "mpt_serve.serve_run",
        "mpt_serve.text",
    },
    "mpt_serve.easydel": {"mpt_serve.configuration", "mpt_serve.errors", *_ALL_OF_MODEL},
    "mpt_serve.cli": {"mpt_serve.commands"},
    "mpt_serve.__main__": {"mpt_serve.commands"},
    "mpt_serve": {"mpt_serve.easydel", *_ALL_OF_MODEL},
}

_ARRAYS = {"jax", "jaxlib", "numpy", "ml_dtypes"}
# The same keys -> the libraries beside Python's own that they may import.
LIBRARIES: Mapping[str, set[str]] = {
    "model.ops": {"flax", *_ARRAYS},
    "model.gguf": _ARRAYS,
    "model.config": _ARRAYS,
    "model.params": {"flax", *_ARRAYS},
    "model.kernels": _ARRAYS,
    "model.layers": {"flax", *_ARRAYS},
    "model.checkpoint": {"gguf", "orbax", "safetensors", "tqdm", *_ARRAYS},
    "model.sampling": _ARRAYS,
    "model.kernel_selection": _ARRAYS,
    "model.pretrained": {"huggingface_hub", *_ARRAYS},
    "model.flax_module": {"flax", *_ARRAYS},
    "mpt_serve.configuration": {"pydantic", "yaml", "huggingface_hub", "ray"},  # Ray: Serve's own schema
    "mpt_serve.text": {"tokenizers", "sentencepiece", "transformers", "jinja2"},
    "mpt_serve.structured_outputs": {"llguidance", "numpy"},
    "mpt_serve.engine": {"annotated_types", *_ARRAYS},  # pydantic's own bounds
    "mpt_serve.conversion": {"jax", "numpy"},
    "mpt_serve.llm": {"numpy", "tqdm"},
    "mpt_serve.openai": {"starlette", "pydantic", "pydantic_core", "typing_extensions"},
    "mpt_serve.deployments": {"ray", "starlette", "prometheus_client", "opentelemetry", "jax", "msgpack", "uvicorn"},
    "mpt_serve.driver": {"ray"},
    "mpt_serve.graceful_run": {"ray"},
    "mpt_serve.resources": {"ray"},
    "mpt_serve.rollout": {"ray"},
    "mpt_serve.serve_run": {"ray"},
    "mpt_serve.app": {"ray"},
    "mpt_serve.start_display": {"ray", "rich"},
    "mpt_serve.commands": {"typer", "rich", "httpx"},
    "mpt_serve.easydel": {"httpx", "jax", "pydantic", "starlette", "uvicorn", "yaml"},
}

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 70
MEDIAN_MODULE_LINES = range(60, 151)


def package_of(name: str) -> str:
    """Return the key of the tables that a module belongs to: `mpt_serve.engine.pipeline` -> `mpt_serve.engine`."""
    return ".".join(name.split(".")[:2])


def all_imports() -> list[tuple[Module, Import]]:
    found = [(module, imported) for module in MODULES.values() for imported in module.imports(MODULES)]
    return list(dict.fromkeys(found))  # two names from one module are one import


def is_ours(name: str) -> bool:
    return name.split(".")[0] in ("model", "mpt_serve")


def test_every_package_has_its_row_in_the_tables() -> None:
    assert {package_of(name) for name in MODULES} == set(ALLOWED)
    assert set(LIBRARIES) <= set(ALLOWED)


def test_the_table_itself_has_no_circle() -> None:
    assert circle({name: sorted(targets - {name}) for name, targets in ALLOWED.items() if name != "mpt_serve"}) is None


def test_imports_point_in_the_direction_of_the_table() -> None:
    wrong = [
        f"{module.path}:{imported.line}: {package_of(module.name)} must not import {imported.module}"
        for module, imported in all_imports()
        if is_ours(imported.module)
        and package_of(imported.module) not in {package_of(module.name), *ALLOWED[package_of(module.name)]}
    ]
    assert not wrong, "\n".join(wrong)


def test_each_package_uses_its_own_libraries_only() -> None:
    wrong = [
        f"{module.path}:{imported.line}: {package_of(module.name)} must not import {imported.module}"
        for module, imported in all_imports()
        if not is_ours(imported.module)
        and imported.module.split(".")[0]
        not in LIBRARIES.get(package_of(module.name), set()) | set(sys.stdlib_module_names)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_go_in_a_circle() -> None:
    graph = {
        name: sorted({imported.module for imported in module.imports(MODULES) if imported.module in MODULES})
        for name, module in MODULES.items()
    }
    found = circle(graph)
    assert found is None, " -> ".join(found or ())


def circle(graph: Mapping[str, list[str]]) -> list[str] | None:
    """Return the names along one circle of the graph, None where there is none."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return None
        for target in graph.get(name, ()):
            found = visit(target, [*path, name])
            if found is not None:
                return found
        finished.add(name)
        return None

    return next((found for name in graph if (found := visit(name, [])) is not None), None)


def test_the_search_finds_circles() -> None:
    assert circle({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}) is None
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]


def test_hidden_imports_are_found() -> None:
    source = "if TYPE_CHECKING:\n    from model.ops import rope\ndef f():\n    import mpt_serve.text.tokenizer\n"
    module = Module("x", Path("x.py"), is_package=False)
    module.__dict__["tree"] = ast.parse(source)
    assert [found.module for found in module.imports(MODULES)] == ["model.ops.rope", "mpt_serve.text.tokenizer"]


def test_modules_are_short() -> None:
    lengths = {str(module.path): module.length for module in MODULES.values() if not module.is_package}
    assert {path: length for path, length in lengths.items() if length > MAX_MODULE_LINES} == {}
    assert int(statistics.median(lengths.values())) in MEDIAN_MODULE_LINES


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{module.path}: {name} has {length} lines"
        for module in MODULES.values()
        for name, length in module.functions()
        if length > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_the_wheel_holds_the_product_and_no_training_code(tmp_path: Path) -> None:
    """Built without its native kernels, which change nothing about the modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["scikit-build"]["wheel"]["packages"] == ["model", "mpt_serve"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    options = ["--config-settings=wheel.cmake=false", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*command, *options], check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.parts[0] for name in names} == {"model", "mpt_serve"}
    assert {name for name in names if name.suffix == ".py"} == {module.path for module in MODULES.values()}
    static = Path("mpt_serve/openai/static")  # what the pages are made of
    assert {name for name in names if name.is_relative_to(static)} == {
        file.relative_to(ROOT) for file in (ROOT / static).rglob("*") if file.is_file()
    }
    assert not [name for name in names if "training" in name.parts or name.suffix in (".cc", ".h")]


def test_no_two_files_of_tests_have_one_name() -> None:
    """Pytest imports them by their names alone, and refuses the second."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})
