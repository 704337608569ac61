"""Commands to a real daemon over a real broker: what they do, and what a killed one says."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit import control, messages, topics
from edgekit.control import Command, CommandResult
from edgekit.link import Broker, MqttLink
from edgekit.signing import SigningKey
from tests import bundles
from tests.system.daemons import (
    SITE,
    Coordinator,
    EdgeDaemon,
    Repository,
    broker,
    wait_for,
)

pytestmark = pytest.mark.system

DEVICE = "board-1"


class Operator:
    """Sends commands as a coordinator of an insecure fleet does, and hears the results."""

    def __init__(self, port: int, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._numbers = itertools.count(1)
        self.results: list[CommandResult] = []
        self.link = MqttLink(
            Broker("127.0.0.1", port, tls=False),
            client_id="operator",
            filters=[topics.every_device(SITE, control.RESULT_FILTER)],
            on_message=self._received,
            on_connect=lambda: None,
        )
        self.link.start()
        wait_for(lambda: self.link.connected, "the operator")

    def command(self, kind: str, **args: Any) -> Command:
        assert self._coordinator.status is not None
        number, now_ms = next(self._numbers), time.time_ns() // 1_000_000
        return Command(
            id=f"c{number}",
            device=f"{SITE}/{DEVICE}",
            counter=number,
            boot=self._coordinator.status.boot,
            issued_at=now_ms,
            expires_at=now_ms + 60_000,
            kind=kind,
            args=args,
        )

    def send(self, command: Command) -> None:
        raw = control.encode(command, key=None)
        self._coordinator.tell(control.command_leaf(command.id), raw, retain=False)

    def ask(self, command: Command) -> CommandResult:
        """The last word on a command."""
        self.send(command)
        return self.answer(command, "done", "failed", "refused", "interrupted")

    def answer(self, command: Command, *states: str) -> CommandResult:
        def there() -> CommandResult | None:
            found = [r for r in self.results if r.id == command.id and r.state in states]
            return found[-1] if found else None

        found = wait_for(there, f"{command.kind} {states}")
        assert isinstance(found, CommandResult)
        return found

    def _received(self, topic: str, payload: bytes) -> None:
        self.results.append(messages.decode(payload, CommandResult, topic=topic))


class Site:
    """A broker's clients, a repository, and one device that serves the second of two versions."""

    def __init__(self, folder: Path, port: int) -> None:
        key = SigningKey.generate()
        trust = folder / "trusted.pub"
        trust.write_bytes(key.public.pem)
        self.repository = Repository()
        self.coordinator = Coordinator(port, DEVICE)
        self.operator = Operator(port, self.coordinator)
        self.device = EdgeDaemon(
            folder,
            trust=trust,
            device=DEVICE,
            broker_port=port,
            repository=self.repository.url,
        )
        self.start()
        for serial, version in enumerate(("1.0.0", "1.1.0"), start=1):
            path = bundles.write(folder, version=version, key=key, seed=serial)
            self.coordinator.want(serial, tiny=self.repository.put(path))
            self.settle(version, "confirmed")

    def start(self) -> None:
        before = self.coordinator.status
        self.device.start()

        def there() -> bool:
            now = self.coordinator.status
            return now is not None and now.online and (before is None or now.boot != before.boot)

        wait_for(there, "the device")

    def settle(self, version: str, state: str) -> None:
        def there() -> bool:
            found = self.coordinator.state("tiny")
            return bool(found and (found.version, found.state) == (version, state))

        wait_for(there, f"{version} {state}")

    def close(self) -> None:
        process = self.device.process
        if process is not None and process.poll() is None:
            self.device.kill()
        # Shown beside a test that failed.
        print(f"the daemon's log:\n{self.device.log[-4000:]}")  # noqa: T201
        self.operator.link.close()
        self.coordinator.link.close()
        self.repository.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with broker(tmp_path) as port:
        made = Site(tmp_path, port)
        yield made
        made.close()


def test_a_daemon_carries_out_what_an_operator_asks(site: Site) -> None:
    ask, command = site.operator.ask, site.operator.command

    measured = ask(command("benchmark", model="tiny", seconds=0.2))
    assert measured.output is not None
    assert (measured.output["version"], measured.output["others"]) == ("1.1.0", 0)
    reloaded = ask(command("reload", model="tiny"))
    assert (reloaded.state, reloaded.output and reloaded.output["version"]) == ("done", "1.1.0")
    assert site.device.versions("tiny") == ["1.1.0"]
    back = ask(command("rollback", model="tiny"))
    assert back.output is not None
    assert (back.output["before"], back.output["version"]) == ("1.1.0", "1.0.0")
    assert site.device.versions("tiny") == ["1.0.0"]
    assert ask(command("cancel", model="tiny")).reason == "not_possible"

    told = ask(command("logs", level="warning"))
    output = control.output_of(told, topic="logs")
    assert output is not None
    assert any("insecure" in line for line in output["lines"])
    known = control.output_of(ask(command("diagnostics")), topic="diagnostics")
    assert known is not None
    assert known["updates"]["tiny"]["state"] == "rolled_back"


def test_a_killed_daemon_says_that_it_was_interrupted_and_keeps_what_was_set(site: Site) -> None:
    operator = site.operator
    assert operator.ask(operator.command("set_interval", seconds=7)).state == "done"
    long = operator.command("benchmark", model="tiny", seconds=30)
    operator.send(long)
    operator.answer(long, "running")
    site.device.kill()
    site.start()

    assert operator.answer(long, "interrupted").reason == "killed"
    operator.send(long)
    wait_for(lambda: [r.id for r in operator.results].count(long.id) >= 3, "the same answer")
    assert operator.results[-1].state == "interrupted"
    known = control.output_of(operator.ask(operator.command("diagnostics")), topic="diagnostics")
    assert known is not None
    assert known["link"]["interval_s"] == 7
    assert site.device.stop() == 0
