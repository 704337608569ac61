"""The daemon as a process, with a real broker and a real repository."""

from __future__ import annotations

import http.server
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit import messages, tensors, topics
from edgekit.messages import Desired, ParametersHeader, RoundOpen, UpdateHeader, Wanted
from edgekit.signing import SigningKey
from tests import bundles, trainable
from tests.faults import GOOD, Conditions, LinkProxy
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


class Fleet:
    """A broker, a repository, a coordinator and one device that is not started yet."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.key = SigningKey.generate()
        self.trust = folder / "trusted.pub"
        self.trust.write_bytes(self.key.public.pem)
        self.port = port
        self.repository = Repository()
        self.coordinator = Coordinator(port, DEVICE)
        self.device = self.make_device()

    def make_device(self, *, more: str = "", confirm_after_s: float = 0.2) -> EdgeDaemon:
        self.device = EdgeDaemon(
            self.folder,
            trust=self.trust,
            device=DEVICE,
            broker_port=self.port,
            repository=self.repository.url,
            more=more,
            confirm_after_s=confirm_after_s,
        )
        return self.device

    def start(self) -> None:
        self.device.start()
        wait_for(lambda: self.coordinator.status and self.coordinator.status.online, "the device")

    def publish(self, version: str, **options: bool | int) -> Wanted:
        path = bundles.write(self.folder, version=version, key=self.key, **options)  # type: ignore[arg-type]
        return self.repository.put(path)

    def settle(self, version: str, state: str) -> messages.ModelState:
        """Wait until the device reports that it serves `version` and that its update is there."""

        def there() -> messages.ModelState | None:
            found = self.coordinator.state("tiny")
            if found and (found.version, found.state) == (version, state):
                return msgspec.convert(found, messages.ModelState)
            return None

        found = wait_for(there, f"{version} {state}")
        assert isinstance(found, messages.ModelState)
        return found

    def close(self) -> None:
        process = self.device.process
        if process is not None and process.poll() is None:
            self.device.kill()
        # Shown beside a test that failed.
        print(f"the daemon's log:\n{self.device.log[-4000:]}" if process else "no daemon ran")  # noqa: T201
        print("statuses heard:", self.coordinator.statuses[-6:])  # noqa: T201
        self.coordinator.link.close()
        self.repository.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with broker(tmp_path) as port:
        made = Fleet(tmp_path, port)
        yield made
        made.close()


def test_a_device_moves_to_new_versions_and_stays_where_a_probe_fails(fleet: Fleet) -> None:
    first, second = fleet.publish("1.0.0"), fleet.publish("1.1.0", seed=1)
    bad = fleet.publish("1.2.0", seed=2, broken_golden=True)
    fleet.start()

    fleet.coordinator.want(1, tiny=first)
    fleet.settle("1.0.0", "confirmed")
    fleet.coordinator.want(2, tiny=second)
    fleet.settle("1.1.0", "confirmed")
    fleet.coordinator.want(3, tiny=bad)
    failed = fleet.settle("1.1.0", "failed")

    assert failed.reason == "golden_mismatch"
    assert failed.target == "1.2.0"
    assert fleet.device.versions("tiny") == ["1.1.0"]
    fetched = len(fleet.repository.offsets)
    fleet.coordinator.want(4, tiny=first)
    fleet.settle("1.0.0", "confirmed")
    assert len(fleet.repository.offsets) == fetched + 1


def test_presence_is_retained_and_true(fleet: Fleet) -> None:
    fleet.start()
    fleet.device.kill()
    wait_for(lambda: not fleet.coordinator.status.online, "the last will")  # type: ignore[union-attr]

    fleet.start()
    assert fleet.device.stop() == 0
    wait_for(lambda: not fleet.coordinator.status.online, "the goodbye")  # type: ignore[union-attr]
    assert fleet.coordinator.reported is not None
    assert fleet.coordinator.reported.boot == fleet.coordinator.status.boot  # type: ignore[union-attr]
    assert '"level": "error"' not in fleet.device.log


def test_the_last_will_of_an_older_connection_does_not_stand(fleet: Fleet) -> None:
    fleet.start()
    will = messages.Status(online=False, boot="0" * 16)
    fleet.coordinator.tell(topics.STATUS, messages.encode(will))

    said = fleet.coordinator.statuses
    wait_for(lambda: will in said and said[-1].online, "the device's answer to an old will")


def test_a_link_that_goes_silent_is_missed_and_loses_nothing(fleet: Fleet) -> None:
    with LinkProxy(("127.0.0.1", fleet.port)) as link:
        text = fleet.device.config.read_text()
        behind = text.replace(f":{fleet.port}", f":{link.port}", 1)
        behind = behind.replace("insecure = true\n", "insecure = true\nkeepalive_s = 5\n", 1)
        fleet.device.config.write_text(behind)
        fleet.start()
        boot = fleet.coordinator.status.boot  # type: ignore[union-attr]
        wait_for(lambda: fleet.coordinator.has(boot, 3), "telemetry")

        link.set(Conditions(half_open=True))
        wait_for(lambda: not fleet.coordinator.status.online, "the last will")  # type: ignore[union-attr]
        reached = max(seq for _, seq in fleet.coordinator.stored)
        link.set(GOOD)
        wait_for(lambda: fleet.coordinator.status.online, "the device to come back")  # type: ignore[union-attr]
        wait_for(lambda: fleet.coordinator.has(boot, reached + 10), "what waited")

    assert all(fleet.coordinator.has(boot, seq) for seq in range(1, reached + 10))


def test_nothing_that_arrives_over_mqtt_ends_the_daemon(fleet: Fleet) -> None:
    fleet.make_device(more='[training]\ndata = "/nowhere.npz"\nmodels = ["tiny"]\n')
    fleet.start()
    rounds = f"edgekit/v1/{SITE}/rounds"
    garbage = [b"{", b"\xff\x00", b"[" * 100_000, b'{"v":2}', b"null", b"x" * 300_000]
    for payload in garbage:
        fleet.coordinator.tell(topics.DESIRED, payload)
        fleet.coordinator.tell(topics.ACK, payload, retain=False)
        fleet.coordinator.link.publish(f"{rounds}/r1/open", payload)
    fleet.coordinator.tell(topics.DESIRED, b"")
    odd = {"v": 1, "serial": 9, "models": {"../up": {}}}
    fleet.coordinator.tell(topics.DESIRED, json.dumps(odd).encode())

    fleet.coordinator.want(1, tiny=fleet.publish("1.0.0"))
    fleet.settle("1.0.0", "confirmed")

    # A broker keeps the order within a topic only.
    wait_for(
        lambda: fleet.device.log.count("message dropped") >= 3 * len(garbage),
        "all of it to be dropped",
    )
    assert "Traceback" not in fleet.device.log


def test_telemetry_survives_kills_and_is_stored_once(fleet: Fleet) -> None:
    fleet.coordinator.acknowledges = False
    boots = set()
    for turn in range(4):
        fleet.start()
        assert fleet.coordinator.status is not None
        boot = fleet.coordinator.status.boot
        wait_for(partial(fleet.coordinator.has, boot, 2), "telemetry")
        boots.add(boot)
        fleet.coordinator.acknowledges = turn >= 1
        fleet.device.kill()
        wait_for(lambda: not fleet.coordinator.status.online, "the last will")  # type: ignore[union-attr]
    fleet.start()
    database = fleet.device.state / "outbox.db"
    wait_for(lambda: not boots & boots_in(database), "an outbox without the past")
    assert fleet.device.stop() == 0

    for boot in boots:
        seqs = sorted(seq for b, seq in fleet.coordinator.stored if b == boot)
        assert len(seqs) >= 2
        assert seqs == list(range(1, len(seqs) + 1))


def boots_in(database: Path) -> set[str]:
    """Starts of the daemon that the outbox still holds messages of."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return {boot for (boot,) in db.execute("SELECT DISTINCT boot FROM messages")}


def test_a_request_on_the_board_brings_the_previous_version_back(fleet: Fleet) -> None:
    fleet.start()
    fleet.coordinator.want(1, tiny=fleet.publish("1.0.0"))
    fleet.settle("1.0.0", "confirmed")
    fleet.coordinator.want(2, tiny=fleet.publish("1.1.0", seed=1))
    fleet.settle("1.1.0", "confirmed")

    found = edgekit("device", "rollback", "tiny", "--config", str(fleet.device.config), "--json")
    assert found == {"model": "tiny", "version": "1.0.0", "running": True}
    state = fleet.settle("1.0.0", "rolled_back")

    assert state.reason == "asked"
    status = edgekit("device", "status", "--config", str(fleet.device.config), "--json")
    assert status["running"]
    assert status["models"]["tiny"]["version"] == "1.0.0"


def edgekit(*arguments: str) -> Any:
    program = "from edgekit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_device_takes_part_in_a_round(fleet: Fleet) -> None:
    base = trainable.write(fleet.folder, key=fleet.key)
    data = fleet.folder / "data.npz"
    np.savez(data, **trainable.samples())
    fleet.make_device(more=f'[training]\ndata = "{data}"\nmodels = ["clouds"]\n')
    fleet.start()
    wanted = fleet.repository.put(base)
    fleet.coordinator.want(1, clouds=wanted)
    reported = lambda: fleet.coordinator.reported and fleet.coordinator.reported.trains  # noqa: E731
    assert wait_for(reported, "a device that trains") == ("clouds",)

    weights = trainable.parameters(base)
    opened = RoundOpen(
        round="r1",
        site=SITE,
        model="clouds",
        base=wanted.digest,
        parameters_sha256=tensors.digest(weights),
        participants=(DEVICE,),
        epochs=2,
        batch_size=16,
        learning_rate=0.05,
        closes_at=1 << 52,
    )
    link = fleet.coordinator.link
    link.publish(topics.round_open(SITE, "r1"), messages.encode(opened), retain=True)
    frame = tensors.pack(ParametersHeader(round="r1"), weights)
    link.publish(topics.round_parameters(SITE, "r1"), frame, retain=True)
    wait_for(lambda: fleet.coordinator.updates, "an update")
    fleet.device.kill()
    fleet.start()
    wait_for(lambda: len(fleet.coordinator.updates) >= 2, "the update once more")

    header, changes = tensors.unpack(
        fleet.coordinator.updates[0], UpdateHeader, max_bytes=1 << 20, what="update"
    )
    assert header.loss_after < header.loss_before
    assert set(changes) == set(weights)
    assert fleet.coordinator.updates[1] == fleet.coordinator.updates[0]


def test_a_wish_that_comes_again_is_answered_with_what_the_device_has(fleet: Fleet) -> None:
    fleet.start()
    wish = Desired(serial=3)
    fleet.coordinator.tell(topics.DESIRED, messages.encode(wish))

    def taken() -> bool:
        said = fleet.coordinator.reported
        return said is not None and said.serial == 3

    wait_for(taken, "the wish to be taken")
    fleet.coordinator.reported = None
    fleet.coordinator.tell(topics.DESIRED, messages.encode(wish))

    wait_for(taken, "the reported state once more")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[EdgeDaemon]:
    trust = tmp_path / "trusted.pub"
    trust.write_bytes(SigningKey.generate().public.pem)
    made = EdgeDaemon(tmp_path, trust=trust)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


def test_a_board_without_a_fleet_serves_and_ends_in_good_order(alone: EdgeDaemon) -> None:
    alone.start()
    wait_for(lambda: alone.get("/v2/health/live") is not None, "the server")

    assert alone.stop() == 0
    assert "Traceback" not in alone.log


def test_a_second_daemon_on_one_state_folder_is_refused(alone: EdgeDaemon) -> None:
    alone.start()
    wait_for(lambda: alone.get("/v2/health/live") is not None, "the server")
    first = alone.process
    assert first is not None
    alone.start()
    second = alone.process
    assert second is not None

    assert second.wait(30) == 2
    assert "error: another daemon uses" in alone.log
    first.kill()
    first.wait()


def test_a_port_in_use_ends_the_start_with_its_exit_code(alone: EdgeDaemon) -> None:
    server = http.server.HTTPServer(("127.0.0.1", alone.port), http.server.BaseHTTPRequestHandler)
    alone.start()
    assert alone.process is not None

    assert alone.process.wait(30) == 6
    assert "error:" in alone.log
    assert "Traceback" not in alone.log
    server.server_close()


def test_a_wrong_configuration_ends_the_start_with_its_exit_code(alone: EdgeDaemon) -> None:
    alone.config.write_text(alone.config.read_text() + "[colour]\n")
    alone.start()
    assert alone.process is not None

    assert alone.process.wait(30) == 2
    assert "colour" in alone.log
    assert "Traceback" not in alone.log
