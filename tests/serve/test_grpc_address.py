"""Where Serve's gRPC server in a replica listens; test_api_keys.py looks at a started server."""

import logging
from typing import Any

import pytest
from ray.serve._private import replica

from mpt_serve.deployments.grpc_address import listen_on_the_nodes_address


def test_the_port_is_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def add_port(server: Any, address: str) -> int:
        opened.append(address)
        return 7

    monkeypatch.setattr(replica, "add_port_to_grpc_server", add_port)
    listen_on_the_nodes_address()
    listen_on_the_nodes_address()
    for node in ("127.0.0.1", "2001:db8::1"):
        monkeypatch.setattr("ray.util.get_node_ip_address", lambda node=node: node)
        assert replica.add_port_to_grpc_server(None, "[::]:0") == 7
    assert replica.add_port_to_grpc_server(None, "[::1]:9") == 7
    assert opened == ["127.0.0.1:0", "[2001:db8::1]:0", "[::1]:9"]


def test_where_the_nodes_address_is_not_the_machines_it_is_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_port(server: Any, address: str) -> int:
        if not address.startswith("[::]"):
            raise RuntimeError("Failed to bind")
        return 7

    monkeypatch.setattr(replica, "add_port_to_grpc_server", add_port)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "192.0.2.1")
    listen_on_the_nodes_address()
    assert replica.add_port_to_grpc_server(None, "[::]:0") == 7


def test_another_serve_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delattr(replica, "add_port_to_grpc_server")
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        listen_on_the_nodes_address()
    assert not hasattr(replica, "add_port_to_grpc_server")
