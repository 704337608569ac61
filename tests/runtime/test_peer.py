"""Which local user is at the other end of a connection."""

from __future__ import annotations

import os
import socket

import pytest

from edgekit_runtime.serving import peer
from tests.runtime.served import HOST

ME = os.getuid()


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, HOST), (socket.AF_INET6, "::1")])
def test_a_loopback_connection_tells_its_user(family: int, host: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"{host} is not there")
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]):
            end, _ = listener.accept()
            with end:
                assert peer.of(end) == peer.Peer(is_local=True, uid=ME)


def test_a_unix_socket_tells_its_user() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert peer.of(here) == peer.Peer(is_local=True, uid=ME)


def test_a_user_who_closed_his_end_is_not_taken_for_root() -> None:
    # The kernel lists a socket that nobody holds any more as root's.
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        other = socket.create_connection(listener.getsockname())
        end, _ = listener.accept()
        other.close()
        with end:
            assert peer.of(end).uid is None


def test_a_connection_from_elsewhere_has_no_user() -> None:
    assert peer.of_tcp(("192.0.2.1", 4000), ("192.0.2.2", 80)) == peer.STRANGER
    assert peer.of_tcp(("nowhere", 1), (HOST, 2)) == peer.STRANGER
