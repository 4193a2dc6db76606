"""The product's modules and their imports, read from the source without importing anything."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "mpt_serve")


@dataclass(frozen=True)
class Import:
    """One import of a module: its dotted name, and where it stands."""

    module: str
    line: int


@dataclass(frozen=True)
class Module:
    """A module of the product. name: dotted; a package's `__init__` has the package's name."""

    name: str
    path: Path
    is_package: bool

    @cached_property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, str(self.path))

    @property
    def length(self) -> int:
        return self.source.count("\n")

    def functions(self) -> Iterator[tuple[str, int]]:
        """Yield the name and the number of lines of every function."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield node.name, node.end_lineno - node.lineno + 1

    def imports(self, known: Mapping[str, "Module"]) -> Iterator[Import]:
        """Yield every import, also those in functions and under TYPE_CHECKING.

        known: the product's modules; `from package import module` names the module.
        """
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}:{node.lineno}: a relative import"
                assert node.module is not None
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    yield Import(submodule if submodule in known else node.module, node.lineno)


def product_modules() -> dict[str, Module]:
    """Return every module of model/ and mpt_serve/ by its dotted name."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules[name] = Module(name, path.relative_to(ROOT), is_package)
    return modules
