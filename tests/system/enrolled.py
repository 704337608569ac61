"""A whole fleet as an operator makes it: by `edgekit`'s own commands, with keys, over TLS.

Folder, broker, coordinator and device are what the README's commands make; nothing is stood in for.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit import envelope, messages, topics
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.repository import Published
from edgekit.link import Broker, MqttLink
from edgekit.messages import Desired, Wanted
from edgekit.signing import SigningKey
from edgekit_converters.demo.processes import free_port
from tests import bundles
from tests.system.daemons import NO_CANARY, PATIENCE_S, EdgeDaemon, wait_for

SITE, DEVICE = "demo", "board-1"
NAME = f"{SITE}/{DEVICE}"


def edgekit(*words: str | Path, home: Path, code: int = 0) -> dict[str, Any]:
    """Run a command with `--json`, and what it prints; its settings are below `home`."""
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-m", "edgekit", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(home),
        timeout=120,
    )
    assert answer.returncode == code, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout) if answer.stdout.strip() else {}
    return found


class Process:
    """One long-lived command."""

    def __init__(self, *words: str | Path, home: Path, log: Path) -> None:
        self._words = [sys.executable, "-m", "edgekit", *map(str, words), "--json"]
        self._home = home
        self.log = log
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._words, stdout=subprocess.PIPE, stderr=log, env=_environment(self._home)
            )
        assert self.process.stdout is not None
        self.ready: dict[str, Any] = json.loads(self.process.stdout.readline() or b"{}")
        if not self.ready:
            pytest.fail(f"it did not start: {self.log.read_text()[-2000:]}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Fleet:
    """A fleet with keys, its broker and its coordinator, on this machine."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.port, self.http = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}"
        self.folder = FleetFolder(place / "fleet")
        edgekit(
            *("fleet", "init", self.folder.path, "--site", SITE),
            *("--broker", f"mqtts://127.0.0.1:{self.port}"),
            *("--repository", f"{self.url}/repository/", "--coordinator", self.url),
            home=place,
        )
        self.broker = Process(
            *("broker", "--fleet", self.folder.path, "--listen", f"127.0.0.1:{self.port}"),
            home=place,
            log=place / "broker.log",
        )
        self.coordinator = Process(
            *("coordinator", "--fleet", self.folder.path, "--listen", f"127.0.0.1:{self.http}"),
            *("--state", place / "coordinator"),
            home=place,
            log=place / "coordinator.log",
        )

    @property
    def release_key(self) -> SigningKey:
        return SigningKey.read(self.folder.release_key)

    def run(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        return edgekit(*words, home=self.place, code=code)

    def device(self, name: str = DEVICE, *, more: str = "", settings: str = "") -> EdgeDaemon:
        """An enrolled device, not started yet.

        Args:
            name: its id.
            more: further sections of its configuration.
            settings: further lines of its `[fleet]`.
        """
        folder = self.place / name
        folder.mkdir()
        identity = folder / "state" / "identity"
        fleet = (
            f'[fleet]\nidentity = "{identity}"\ntelemetry_interval_s = 1\n{settings}\n'
            f"{'' if '[canary]' in more else NO_CANARY}"
        )
        device = EdgeDaemon(
            folder, trust=self.folder.trust_release, device=name, more=f"{fleet}{more}"
        )
        self.enroll(device, name)
        return device

    def enroll(self, device: EdgeDaemon, name: str = DEVICE) -> None:
        tokens = self.place / "tokens"
        self.run("fleet", "token", self.folder.path, f"{SITE}/{name}", "--out", tokens)
        (token,) = tokens.iterdir()
        self.run(
            *("device", "enroll", "--token-file", token, "--coordinator", self.url),
            *("--config", device.config),
        )
        token.unlink()

    def publish(self, version: str, *, seed: int, large: bool = False) -> Path:
        """Build, sign and publish a version of the model `tiny`."""
        edge = bundles.write(
            self.place, version=version, key=self.release_key, seed=seed, large=large
        )
        self.run("publish", edge, "--fleet", self.folder.path)
        wait_for(
            lambda: version in [b["version"] for b in self.get("/api/bundles")["bundles"]],
            "the coordinator to notice the bundle",
        )
        return edge

    def rollout(self, version: str, *, name: str = DEVICE) -> int:
        """Ask one device for a version; the rollout's id."""
        wait_for(lambda: self.shown(name), "the device to be known")
        made = self.run(
            *("rollout", "create", "--model", "tiny", "--version", version),
            *("--device", f"{SITE}/{name}", "--coordinator", self.url),
        )
        return int(made["id"])

    def wanted(self, version: str) -> Wanted:
        """How a device is told of a published version."""
        found = [b for b in self.get("/api/bundles")["bundles"] if b["version"] == version]
        return msgspec.convert(found[0], Published).wanted()

    def want(self, serial: int, name: str, models: dict[str, Wanted]) -> None:
        """Sign a wish as the coordinator does, for a device that it has no wishes for."""
        wish = Desired(serial=serial, device=f"{SITE}/{name}", models=models)
        signed = envelope.sign(
            messages.encode(wish),
            kind=envelope.DESIRED,
            key=SigningKey.read(self.folder.control_key),
        )
        self.say(topics.device(SITE, name, topics.DESIRED), signed)

    def say(self, topic: str, payload: bytes) -> None:
        """Publish, retained, with the coordinator's rights."""
        with self.link() as link:
            assert link.publish(topic, payload, retain=True)

    @contextmanager
    def link(
        self, heard: list[tuple[str, bytes]] | None = None, *filters: str
    ) -> Iterator[MqttLink]:
        """A link with the coordinator's rights; what comes by `filters` is put into `heard`."""
        link = MqttLink(
            Broker("127.0.0.1", self.port, tls=True),
            client_id=f"another-coordinator-{len(filters)}",
            filters=filters,
            on_message=lambda topic, payload: (
                None if heard is None else heard.append((topic, payload))
            ),
            on_connect=lambda: None,
            tls=self.folder.client_tls,
        )
        link.start()
        wait_for(lambda: link.connected, "the link")
        try:
            yield link
        finally:
            link.close()

    def shown(self, name: str = DEVICE) -> dict[str, Any] | None:
        """What the coordinator knows of a device."""
        found = [d for d in self.get("/api/devices")["devices"] if d["device"] == f"{SITE}/{name}"]
        return found[0] if found else None

    def state(self, name: str = DEVICE) -> dict[str, Any]:
        """What a device has reported of the model."""
        shown = self.shown(name)
        return {} if shown is None else dict(shown["models"].get("tiny", {}).get("state", {}))

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.get("/api/events")["events"] if e["kind"] == kind]

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def close(self) -> None:
        self.coordinator.stop()
        self.broker.stop()


@contextmanager
def fleet(place: Path) -> Iterator[Fleet]:
    """A fleet that runs, until the block ends; its logs are shown where the test fails."""
    made = Fleet(place)
    try:
        yield made
    finally:
        made.close()
        for log in (made.broker.log, made.coordinator.log):
            print(f"{log.name}:\n{log.read_text()[-3000:]}")  # noqa: T201


def _environment(home: Path) -> Mapping[str, str]:
    folders: Sequence[str] = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
    return {**os.environ, **{name: str(home / "home" / name.lower()) for name in folders}}
