"""A Debian that is booted: its systemd is the first process, in namespaces made by systemd-nspawn.

It has no network but its own loopback, and nothing of it is left when it is switched off: its
processes end with it, and the control groups that nspawn made for it are removed.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.system.daemons import PATIENCE_S, wait_for

_CGROUPS = Path("/sys/fs/cgroup")
# What nspawn makes where it keeps the unit that it is in, innermost first.
_MADE = ("payload/init.scope", "payload", "supervisor")
_UP = ("running", "degraded")


class Machine:
    """A machine that runs.

    Args:
        root: its file system.
        leader: its first process, as this machine numbers it.
    """

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader

    def run(self, *command: str, ok: bool = True) -> str:
        """What a command says that root runs there; `ok` asks that it succeeds."""
        done = subprocess.run(
            ["nsenter", f"--target={self.leader}", "--all", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=4 * PATIENCE_S,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
        )
        assert not ok or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def show(self, unit: str, what: str) -> str:
        """A property of a unit, as its systemd has it."""
        return self.run("systemctl", "show", "--property", what, "--value", unit).strip()

    def journal(self, *, cursor: str | None = None) -> str:
        """All that was logged since its start, or what came after `cursor`."""
        since = f"--after-cursor={cursor}" if cursor else "--boot"
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", since)

    def cursor(self) -> str:
        """Where the journal ends now."""
        said = self.run("journalctl", "--lines=0", "--show-cursor", "--quiet")
        return said.strip().removeprefix("-- cursor: ")

    def process(self, unit: str) -> Path:
        """`/proc/PID` on this machine of a unit's main process."""
        there = self.show(unit, "MainPID")
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                numbers = [line for line in status.read_text().splitlines() if "NSpid:" in line]
                inside = numbers[0].split()[1:]
                if inside[-1] == there and self._holds(status.parent):
                    return status.parent
        raise AssertionError(f"{unit} has no process")

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        """A request to the Unix socket of the daemon there."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(PATIENCE_S)
            connection.sock.connect(f"/proc/{self.leader}/root/run/edgekit/edgekit.sock")
            connection.request(method, path, body)
            with connection.getresponse() as response:
                return response.status, response.read().decode()
        finally:
            connection.close()

    def _holds(self, process: Path) -> bool:
        """Whether a process is one of this machine's."""
        own = Path(f"/proc/{self.leader}/ns/pid").stat().st_ino
        return (process / "ns/pid").stat().st_ino == own


@contextmanager
def booted(root: Path, *options: str) -> Iterator[Machine]:
    """A machine of that file system, from the moment that its start has ended.

    Args:
        root: a Debian with systemd; it is written to.
        options: of systemd-nspawn.
    """
    folders = [path / made for path in _own_cgroups() for made in _MADE]
    new = [folder for folder in folders if not folder.exists()]
    log = root.with_name(f"{root.name}.console").open("wb")
    nspawn = subprocess.Popen(
        [
            # It is switched off also where the tests are killed.
            *("setpriv", "--pdeathsig=TERM"),
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
            *(f"--directory={root}", "--console=pipe", *options, "--boot"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        yield wait_for(lambda: _started(root, nspawn), "the machine to start")
    finally:
        # In good order first, as by its power button.
        nspawn.send_signal(signal.SIGTERM)
        try:
            nspawn.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            nspawn.kill()
            nspawn.wait()
        log.close()
        for folder in new:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def copied(base: Path, root: Path) -> Iterator[Path]:
    """A copy of a file system with its owners and devices, taken away again at the end."""
    try:
        subprocess.run(["cp", "--archive", "--reflink=auto", base, root], check=True)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def why_not() -> str | None:
    """Why no machine can be booted here; None where one can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("systemd-nspawn", "setpriv") if shutil.which(name) is None]
    return f"{', '.join(missing)} is not here: `make system-deps`" if missing else None


def _started(root: Path, nspawn: subprocess.Popen[bytes]) -> Machine | None:
    assert nspawn.poll() is None, root.with_name(f"{root.name}.console").read_text()
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
    if not children:
        return None
    machine = Machine(root, int(children[0]))
    state = machine.run("systemctl", "is-system-running", ok=False).strip()
    return machine if state in _UP else None


def _own_cgroups() -> list[Path]:
    """Where this process is in the trees that nspawn makes groups in."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        mounts = {"name=systemd": ("systemd",), "": ("unified", ".")}.get(names, ())
        found += [_CGROUPS / mount / path.lstrip("/") for mount in mounts]
    return [folder for folder in found if folder.is_dir()]
