from collections.abc import Iterator

import httpx
import openai
import pytest
from fake_backend import FakeBackend
from hypothesis import settings
from loopback_server import Server, serving

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """The shared server with its backend as new."""
    shared_server.backend.__dict__.update(FakeBackend().__dict__)
    return shared_server


@pytest.fixture
def backend(server: Server) -> FakeBackend:
    return server.backend


@pytest.fixture(scope="session")
def shared_http(shared_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_server.url, timeout=30) as client:
        yield client


@pytest.fixture
def http(server: Server, shared_http: httpx.Client) -> httpx.Client:
    """A client of the shared server."""
    return shared_http


@pytest.fixture
def client(server: Server, shared_http: httpx.Client) -> openai.OpenAI:
    """The official client of the shared server, without retries."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=shared_http)
