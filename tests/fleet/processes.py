"""A real broker and a real coordinator, each a process of its own, and what tests ask of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.fleet.client import Client
from edgekit_converters.demo.processes import free_port


class Process:
    """`edgekit …` in a process; ready when it has printed its document."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self._log = log.open("ab")
        # Keys and state of whoever runs the tests stay out of them.
        homes = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgekit", *arguments, "--json"],
            env={**os.environ, **{home: str(log.parent / "home") for home in homes}},
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise AssertionError(f"edgekit {arguments[0]} did not start: {log.read_text()}")
        self.said: dict[str, Any] = json.loads(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._finish()

    def wait(self) -> int:
        """The exit code of a process that ends by itself."""
        return self._finish()

    def stop(self) -> int:
        self._process.terminate()
        return self._finish()

    def _finish(self) -> int:
        code = self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        return code


class Fleet:
    """A broker and a coordinator below one folder."""

    def __init__(self, folder: Path, *, trust: Path, key: Path | None = None) -> None:
        self._folder = folder
        self._options = ["--trust", str(trust), *(["--key", str(key)] if key else [])]
        self.broker = Process(
            "broker",
            *("--listen", "127.0.0.1:0"),
            *("--state", str(folder / "broker")),
            log=folder / "broker.log",
        )
        # A port that stays free while the coordinator is away.
        self.coordinator = self._start(f"127.0.0.1:{free_port()}")

    @property
    def mqtt(self) -> str:
        return str(self.broker.said["url"])

    @property
    def url(self) -> str:
        return str(self.coordinator.said["url"])

    @property
    def repository(self) -> str:
        return str(self.coordinator.said["repository"])

    @property
    def client(self) -> Client:
        return Client(self.url)

    def restart(self, *, kill: bool) -> None:
        """End the coordinator, in order or by force, and start it again where it was."""
        listen = self.url.removeprefix("http://")
        if kill:
            self.coordinator.kill()
        else:
            assert self.coordinator.stop() == 0
        self.coordinator = self._start(listen)

    def devices(self) -> dict[str, dict[str, Any]]:
        found = self.client.get("/api/devices", dict[str, Any])["devices"]
        return {device["id"]: device for device in found}

    def log(self) -> str:
        return (self._folder / "coordinator.log").read_text()

    def close(self) -> None:
        self.coordinator.stop()
        self.broker.stop()

    def _start(self, listen: str) -> Process:
        return Process(
            "coordinator",
            *("--listen", listen),
            *("--broker", self.mqtt),
            *("--state", str(self._folder / "coordinator")),
            *self._options,
            log=self._folder / "coordinator.log",
        )


def until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("what was waited for did not happen")
        time.sleep(0.02)


def edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments], capture_output=True, text=True, timeout=120
    )


def download(url: str, *, span: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    """GET a URL, or a range of it: status, content and headers."""
    request = urllib.request.Request(url, headers={"Range": span} if span else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, answer.read(), dict(answer.headers.items())
