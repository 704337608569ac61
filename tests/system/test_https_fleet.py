"""A fleet whose coordinator and repository are behind https, by an authority of the company's own.

The coordinator speaks http on loopback; a proxy that ends TLS is what devices see.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from edgekit.fleet.client import Client
from edgekit.fleet.folder import FleetFolder
from edgekit.signing import SigningKey
from edgekit_converters.demo.processes import free_port
from tests import bundles
from tests.fleet.test_enrolment_https import authority_in
from tests.system.daemons import NO_CANARY, EdgeDaemon, wait_for
from tests.system.enrolled import SITE, Process, edgekit

pytestmark = [pytest.mark.system, pytest.mark.slow]


@contextmanager
def tls_proxy(port: int, *, to: int, tls: tuple[Path, Path]) -> Iterator[None]:
    """Ends TLS at `port` and hands what comes on to the port `to`, as nginx would."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*tls)
    listening = socket.create_server(("127.0.0.1", port))

    def carry(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def connect(plain: socket.socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(plain, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", to)) as inside,
        ):
            back = threading.Thread(target=carry, args=(inside, outside), daemon=True)
            back.start()
            carry(outside, inside)
            back.join()

    def accept() -> None:
        with suppress(OSError):  # it was closed
            while True:
                plain, _ = listening.accept()
                threading.Thread(target=connect, args=(plain,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


def test_a_device_enrols_fetches_and_serves_over_https(tmp_path: Path) -> None:
    mqtt, inside, outside = free_port(), free_port(), free_port()
    ca, tls = authority_in(tmp_path / "company")
    url, api = f"https://127.0.0.1:{outside}", f"http://127.0.0.1:{inside}"
    folder = FleetFolder(tmp_path / "fleet")

    def run(*words: str | Path) -> dict[str, Any]:
        return edgekit(*words, home=tmp_path)

    run(
        *("fleet", "init", folder.path, "--site", SITE),
        *("--broker", f"mqtts://127.0.0.1:{mqtt}"),
        *("--repository", f"{url}/repository/", "--coordinator", url),
    )
    broker = Process(
        *("broker", "--fleet", folder.path, "--listen", f"127.0.0.1:{mqtt}"),
        home=tmp_path,
        log=tmp_path / "broker.log",
    )
    coordinator = Process(
        *("coordinator", "--fleet", folder.path, "--listen", f"127.0.0.1:{inside}"),
        *("--state", tmp_path / "coordinator"),
        home=tmp_path,
        log=tmp_path / "coordinator.log",
    )
    (tmp_path / "board").mkdir()
    identity = tmp_path / "board" / "state" / "identity"
    device = EdgeDaemon(
        tmp_path / "board",
        trust=folder.trust_release,
        device="board",
        more=f'[fleet]\nidentity = "{identity}"\n{NO_CANARY}',
    )
    run("fleet", "token", folder.path, f"{SITE}/board", "--out", tmp_path / "tokens")
    (token,) = (tmp_path / "tokens").iterdir()
    try:
        with tls_proxy(outside, to=inside, tls=tls):
            run(
                *("device", "enroll", "--token-file", token, "--coordinator", url),
                *("--ca", ca, "--config", device.config),
            )
            device.start()
            key = SigningKey.read(folder.release_key)
            edge = bundles.write(tmp_path, version="1.0.0", key=key)
            run("publish", edge, "--fleet", folder.path)
            create = ("rollout", "create", "--model", "tiny", "--version", "1.0.0")
            client = Client(api)
            wait_for(lambda: client.get("/api/devices", dict[str, Any])["devices"], "the device")
            run(*create, "--watch", "--coordinator", api)
            assert device.versions("tiny") == ["1.0.0"]
    finally:
        device.stop()
        coordinator.stop()
        broker.stop()
    assert "Traceback" not in device.log
