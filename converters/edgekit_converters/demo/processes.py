"""The programs of the demo, as real processes that end with it.

Promise: whatever happens, Ctrl-C included, every process that was started is ended, the last
started first; what each one said is in its log.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from edgekit.errors import EdgekitError

GRACE_S = 10.0
_POLL_S = 0.1
_TAIL_LINES = 8
# Below what Linux, macOS and Windows give outgoing connections unless they are told otherwise.
_PORTS = range(20_000, 32_000)


class DemoError(EdgekitError):
    """A step of the demo did not do what it should; the log says why."""

    exit_code = 1


class _Process(NamedTuple):
    name: str
    handle: subprocess.Popen[bytes]


class Processes:
    """Starts programs, and ends them all when the block ends."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[_Process] = []

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start a program that runs until the end of the demo."""
        with self._log(name).open("ab") as log:
            # A group of its own: Ctrl-C reaches this process only, which ends the others in order.
            handle = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._running.append(_Process(name, handle))

    def run(self, name: str, arguments: Sequence[str], *, timeout_s: float) -> Any:
        """Run a program with `--json` to its end and read the document that it prints."""
        with self._log(name).open("ab") as log:
            handle = subprocess.Popen(
                [*arguments, "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._running.append(_Process(name, handle))
        try:
            output, _ = handle.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as e:
            raise self._failed(name, f"did not end within {timeout_s:.0f} s") from e
        self._running.pop()
        if handle.returncode != 0:
            raise self._failed(name, f"ended with exit code {handle.returncode}")
        return json.loads(output)

    def wait(self, name: str, what: str, ready: Callable[[], Any], *, timeout_s: float) -> Any:
        """Ask `ready` until it answers something true; `name`'s log explains where it does not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._check_alive()
            if answer := ready():
                return answer
            time.sleep(_POLL_S)
        raise self._failed(name, f"{what}: not within {timeout_s:.0f} s")

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._running):
            _end(process.handle)
        self._running.clear()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _check_alive(self) -> None:
        for process in self._running:
            if process.handle.poll() is not None:
                raise self._failed(process.name, f"ended with {process.handle.returncode}")

    def _failed(self, name: str, what: str) -> DemoError:
        log = self._log(name)
        lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if log.exists() else []
        tail = "".join(f"\n  {line}" for line in lines)
        return DemoError(f"{name} {what}{tail}", hint=f"the whole log is {log}")


def edgekit(*arguments: str | Path) -> list[str]:
    """The command line of this very installation."""
    return [sys.executable, "-m", "edgekit", *map(str, arguments)]


def edgekitd(config: Path) -> list[str]:
    """The daemon of this very installation."""
    return [str(Path(sys.executable).with_name("edgekitd")), "--config", str(config)]


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of loopback now."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError):
        return False
    return True


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now.

    It is none of those that Linux gives outgoing connections (`net.ipv4.ip_local_port_range`): one
    of them may be in use again by the time that a program listens.
    """
    while True:
        port = secrets.choice(_PORTS)
        if is_free(port):
            return port


def get(url: str) -> Any:
    """The JSON document at `url`; `None` while nobody answers, or not well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - loopback, http
            return json.loads(response.read() or b"{}") or {"ok": True}
    except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError):
        return None


def _end(handle: subprocess.Popen[bytes]) -> None:
    if handle.poll() is not None:
        return
    handle.terminate()
    try:
        handle.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(handle.pid, signal.SIGKILL)
        handle.wait()
