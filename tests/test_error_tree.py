"""The exceptions of the product are one tree."""

from importlib import import_module

from source_tree import product_modules

from mpt_serve.errors import MptServeError

# What never leaves the module or the process that raises it: child processes load their modules without the package.
INTERNAL = {
    *("ChildEndedError", "ChildStartError", "ClientDisconnectedError", "GrammarError", "MarksError", "MatcherError"),
    *("TemplateRenderError", "_BadJsonError"),
}


def test_every_error_has_one_root() -> None:
    """Those of `model`, which knows nothing of the product, are replaced where the product calls it."""
    kinds = [
        member
        for module in product_modules()
        if module.startswith("mpt_serve.")
        for member in vars(import_module(module)).values()
        if isinstance(member, type) and issubclass(member, Exception) and member.__module__ == module
    ]
    outside = {kind.__name__ for kind in kinds if not issubclass(kind, MptServeError)}
    assert outside == INTERNAL
