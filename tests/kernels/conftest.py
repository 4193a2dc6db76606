import pytest

from model.kernels.cpu.library import KernelLibrary, instruction_sets, kernel_library


@pytest.fixture(
    scope="module", params=instruction_sets() or [pytest.param(None, marks=pytest.mark.skip("kernels were not built"))]
)
def library(request):
    """Return the library with the kernels of each instruction set in turn."""
    library: KernelLibrary = kernel_library()
    usual = library.instruction_set
    library.use(request.param)
    yield library
    library.use(usual)
