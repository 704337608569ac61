"""Ports that a demo gives its programs."""

from __future__ import annotations

import socket

from edgekit_converters.demo.processes import free_port, is_free

# Where Linux begins with the ports of outgoing connections.
FIRST_OUTGOING = 32_768


def test_a_free_port_is_none_that_an_outgoing_connection_is_given() -> None:
    ports = [free_port() for _ in range(50)]

    assert all(1024 <= port < FIRST_OUTGOING for port in ports)
    assert len(set(ports)) > 1


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        assert not is_free(taken.getsockname()[1])
