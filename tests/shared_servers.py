"""Servers that several files of tests speak to: started once, and ended after the last test of these files."""

from collections.abc import Iterator
from contextlib import contextmanager

from server import ServerProcess

# Files by the one whose process starts their server; another process could not reach it.
SHARED_SERVERS = {
    "tests/serve/test_client_commands.py": "tests/serve/test_openai_client.py",
    "tests/serve/test_hostile_clients.py": "tests/serve/test_openai_client.py",
    "tests/serve/test_logs.py": "tests/serve/test_openai_client.py",
    "tests/serve/test_tool_calls.py": "tests/serve/test_complete_engine.py",
}

_running: list[ServerProcess] = []


def group_of(nodeid: str) -> str:
    """Return the file of a test, or the one that its file shares a server with."""
    file = nodeid.partition("::")[0]
    return SHARED_SERVERS.get(file, file)


@contextmanager
def shared(server: ServerProcess) -> Iterator[ServerProcess]:
    """Wait until the server is ready. It ends with the block, or with `end_servers`."""
    with server:
        _running.append(server.wait_ready())
        yield server


def end_servers() -> None:
    """End the servers that are shared: one takes 8 % of a core while it is idle."""
    while _running:
        _running.pop().stop()
