"""The exceptions of the product are one tree."""

import warnings
from importlib import import_module

from source_tree import product_modules

from mpt_serve.errors import MptServeError

# What never leaves the module or the process that raises it: child processes load their modules without the package.
INTERNAL = {
    *("ChildEndedError", "ChildStartError", "ClientDisconnectedError", "GrammarError", "MarksError", "MatcherError"),
    *("TemplateRenderError", "_BadJsonError", "_BadNumberError"),
}


def test_every_error_has_one_root() -> None:
    """Those of `model`, which knows nothing of the product, are replaced where the product calls it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's, as it is imported
        modules = [import_module(name) for name in product_modules() if name.startswith("mpt_serve.")]
    kinds = [
        member
        for module in modules
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, Exception) and member.__module__ == module.__name__
    ]
    outside = {kind.__name__ for kind in kinds if not issubclass(kind, MptServeError)}
    assert outside == INTERNAL
