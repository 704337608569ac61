"""A board for tests: a real OpenSSH server on loopback, as an ordinary process with its own keys.

What a board has is data of the test: a PATH with one Python or none, and a folder for its cache.
Server and client take no configuration, key or known host of whoever runs the tests.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from edgekit_converters.demo.processes import free_port

SSHD = Path("/usr/sbin/sshd")
TIMEOUT_S = 60


class SshBoard:
    """A running server: `device` is for `--device`, `ssh_config` for `--ssh-config`."""

    def __init__(self, folder: Path, *, path: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.ssh_config = folder / "ssh_config"
        self._known_hosts = folder / "known_hosts"
        self.port = free_port()
        self.host = f"{getpass.getuser()}@127.0.0.1"
        self.device = f"{self.host}:{self.port}"
        for key in ("host", "user", "other"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(command, check=True)
        self.know("host")
        self.ssh_config.write_text(
            f"IdentityFile {folder / 'user'}\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {self._known_hosts}\nGlobalKnownHostsFile /dev/null\n"
        )
        settings = folder / "sshd_config"
        settings.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder / 'host'}\nPidFile none\n"
            f"AuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            # After whatever the user's own shell reads at its start.
            f"ForceCommand PATH={path} XDG_CACHE_HOME={self.cache}"
            ' exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        self._log = (folder / "sshd.log").open("wb")
        self._server = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", settings], stderr=self._log, start_new_session=True
        )
        wait_for(self._answers)

    def know(self, key: str) -> None:
        """Let ssh know one of the keys as the host's."""
        public = (self.folder / f"{key}.pub").read_text()
        self._known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")

    def forget(self) -> None:
        """Let ssh know no key of the host."""
        self._known_hosts.unlink()

    def cut(self) -> None:
        """End every connection at once; the server goes on listening."""
        for process in _descendants(self._server.pid):
            if _command(process).startswith("sshd"):
                _kill(process)

    def running(self) -> list[int]:
        """Processes on the board: all that were started with its cache as theirs."""
        mark = f"XDG_CACHE_HOME={self.cache}".encode()
        return [process for process in _processes() if mark in _read(process, "environ")]

    def close(self) -> None:
        """End the server and what it started."""
        for process in (*_descendants(self._server.pid), *self.running()):
            _kill(process)
        self._server.terminate()
        self._server.wait(TIMEOUT_S)
        self._log.close()

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@contextmanager
def board(folder: Path, *, pythons: Mapping[str, Path]) -> Iterator[SshBoard]:
    """A board whose PATH has these Pythons by name, and `cat`.

    Skips where no SSH server is installed.
    """
    if not SSHD.exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("an OpenSSH server is not installed: `make system-deps`")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd parks what it has yet to trust
    path = folder / "bin"
    path.mkdir(parents=True)
    for name, python in pythons.items():
        (path / name).symlink_to(python)
    (path / "cat").symlink_to("/bin/cat")
    running = SshBoard(folder, path=path)
    try:
        yield running
    finally:
        running.close()


def wait_for(condition: Callable[[], bool], *, timeout_s: float = TIMEOUT_S) -> None:
    """Look until a condition holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"{condition} never came true"
        time.sleep(0.02)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _descendants(parent: int) -> list[int]:
    """What a process started, and what that started."""
    parents = {}
    for process in _processes():
        fields = _read(process, "stat").rpartition(b") ")[2].split()
        if fields:
            parents[process] = int(fields[1])
    found, grown = {parent}, True
    while grown:
        more = {child for child, above in parents.items() if above in found} - found
        found, grown = found | more, bool(more)
    return sorted(found - {parent})


def _command(process: int) -> str:
    return _read(process, "cmdline").replace(b"\0", b" ").decode(errors="replace")


def _read(process: int, file: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{file}").read_bytes()
    except OSError:
        return b""


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
