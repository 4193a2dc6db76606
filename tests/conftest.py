"""Options and order of the whole suite, and fixtures of tests that speak HTTP to a server."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from compilation import compile_fast
from server import ServerProcess, free_port, serve_config
from shared_servers import end_servers, group_of, shared
from tiny_checkpoint import write_tiny_checkpoint
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# A busy machine must not fail a test: hypothesis' own time limits say nothing about the code.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")

# The files that take longest, in that order. Two processes take files in this order, so that none of them begins a long
# one while the other has nothing left.
LONGEST_FIRST = (
    "model/test_golden.py",
    "engine/test_sampler.py",
    "serve/test_serve_run.py",
    "serve/test_ends_and_freezes.py",
    "kernels/test_cpu_attention.py",
    "serve/test_proxy_limits_of_a_server.py",
    "serve/test_openai_client.py",
    "serve/test_cluster_growth.py",
    "serve/test_complete_engine.py",
    "serve/test_redeploy.py",
    "engine/test_soak.py",
    "serve/test_api_keys.py",
    "serve/test_broken_model.py",
    "structured_outputs/test_generated_output.py",
    "engine/test_engine.py",
    "training/test_embedded_quality.py",
    "llm/test_llm.py",
    "model/test_pallas_attention.py",
    "checkpoint/test_weight_sharding.py",
)

MANY_MAPS = 20_000  # of 65,530; the one file of tests that takes most takes 28,000
MUCH_MEMORY = 2 * 2**30  # bytes of a process that runs tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the exhaustive grids too, which take many minutes")


def pytest_configure() -> None:
    compile_fast()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked exhaustive, unless --slow is given, and put the files that take longest first."""
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="exhaustive; runs with --slow")
        for item in items:
            if item.get_closest_marker("exhaustive"):
                item.add_marker(skip)
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(group_of(item.nodeid).removeprefix("tests/"), len(ranks)))  # stable


class SharedServerScheduling(LoadFileScheduling):
    """Gives each file to one process, and those that share a server to the same."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """End the servers that files share after the last test of these files."""
    yield
    if nextitem is None or group_of(nextitem.nodeid) != group_of(item.nodeid):
        end_servers()


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> SharedServerScheduling:
    return SharedServerScheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _interrupts_interrupt() -> None:
    """Let SIGINT raise KeyboardInterrupt, also where the shell that started the tests in the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Drop JAX's compiled programs when there are many, or much memory is taken.

    Each takes some of the memory maps that Linux allows a process; with none left JAX dies of a segmentation fault.
    What engines have compiled stays, as it is theirs. The C library keeps what is freed until it is asked for it.
    """
    yield
    maps = Path("/proc/self/maps")
    if "jax" not in sys.modules or not maps.exists():
        return
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident > MUCH_MEMORY or maps.read_bytes().count(b"\n") > MANY_MAPS:
        sys.modules["jax"].clear_caches()
        if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
            library.malloc_trim(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of random weights that answers in microseconds, and its tokenizer."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def own_server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[ServerProcess]:
    """A server that several files share."""
    args = {
        "model": str(tiny_checkpoint),
        "served_model_name": "tiny",
        "chat_template": "dolly",
        "max_model_len": 512,
        "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 64, "num_blocks": 256, "pre_compile": False},
        "batches": {"folder": str(tmp_path_factory.mktemp("batches"))},
    }
    with shared(ServerProcess.of(serve_config(args, free_port()), tmp_path_factory.mktemp("server"))) as server:
        yield server


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """The address of a running server: MPT_SERVE_TEST_URL, or that of `own_server`."""
    external = os.environ.get("MPT_SERVE_TEST_URL")
    if external:
        return external.rstrip("/")
    server: ServerProcess = request.getfixturevalue("own_server")
    return server.url
