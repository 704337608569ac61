"""Daemons, a broker with its store on disk and a coordinator, each killed again and again.

Everything is real: `edgekitd` serving a model to requests, nats-server, `edgekit coordinator`. The
daemons tell telemetry many times a second. A listener notes what the coordinator acknowledges; the
books are closed at the end: what was acknowledged must be in the store, and counted once.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec

from edgekit import messages, signing, topics
from edgekit.fleet.address import Address
from edgekit.fleet.broker import Broker
from edgekit.link import Broker as BrokerAddress
from edgekit.link import MqttLink
from edgekit.messages import Ack, Desired, Telemetry
from edgekit.signing import SigningKey
from edgekit_converters.demo.processes import free_port
from tests import bundles
from tests.fleet.processes import Process
from tests.system.daemons import PATIENCE_S, SITE, EdgeDaemon, Repository, wait_for

Victim = Literal["daemon", "broker", "coordinator"]
VICTIMS: tuple[Victim, ...] = ("daemon", "broker", "coordinator")
MODEL = "tiny"
_DRAIN_LIMIT_S = 400.0
_REQUEST_EVERY_S = 0.05


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when everything had come to rest.

    Attributes:
        killed: how often each was killed.
        boots: starts of daemons.
        messages: rows in the coordinator's store.
        acknowledged: messages that the listener heard being acknowledged.
        lost: of these, not in the store.
        gaps: numbers missing between stored ones of one boot.
        twice: rows beyond the first of each (device, boot, seq).
        requests: in stored telemetry; `counted` in the sums that a dashboard reads.
        seconds: that it took.
    """

    killed: dict[Victim, int]
    boots: int
    messages: int
    acknowledged: int
    lost: int
    gaps: int
    twice: int
    requests: int
    counted: int
    seconds: float


class Fleet:
    """The processes, below one folder.

    Args:
        daemons: how many.
        interval_s: between two telemetry messages of each.
    """

    def __init__(self, folder: Path, *, daemons: int, interval_s: float) -> None:
        self._folder = folder
        _, self._public = signing.new_pair(folder / "keys")
        self._broker = Broker(listen=Address("127.0.0.1", free_port()), state=folder / "broker")
        self._coordinator = self._start_coordinator()
        self._repository = Repository()
        self.daemons = [
            EdgeDaemon(
                folder / f"board-{number}",
                trust=self._public,
                device=f"board-{number}",
                broker_port=self._broker.listen.port,
                repository=self._repository.url,
                interval_s=interval_s,
            )
            for number in range(daemons)
        ]
        self.listener = Listener(self._broker.listen)
        self._asking = Requests(self.daemons)

    @property
    def store(self) -> Path:
        return self._folder / "coordinator" / "fleet.sqlite"

    def start(self) -> None:
        """Begin to serve: from here on there are requests."""
        key = SigningKey.read(self._folder / "keys" / signing.KEY_FILE)
        wanted = self._repository.put(bundles.write(self._folder, name=MODEL, key=key))
        for daemon in self.daemons:
            daemon.start()
            desired = messages.encode(Desired(serial=1, models={MODEL: wanted}))
            self.listener.tell(topics.device(SITE, daemon.device, topics.DESIRED), desired)
        for daemon in self.daemons:
            wait_for(partial(daemon.versions, MODEL), "a model that serves")
        self._asking.start()

    def kill(self, victim: Victim, rng: Random) -> None:
        """Kill one and start it again a moment later."""
        pause_s = rng.random()
        if victim == "broker":
            os.kill(self._broker.pid, signal.SIGKILL)
            time.sleep(pause_s)
            listen = self._broker.listen
            self._broker.close()
            self._broker = Broker(listen=listen, state=self._folder / "broker")
        elif victim == "coordinator":
            self._coordinator.kill()
            time.sleep(pause_s)
            self._coordinator = self._start_coordinator()
        else:
            daemon = rng.choice(self.daemons)
            daemon.kill()
            time.sleep(pause_s)
            daemon.start()

    def stored(self) -> int:
        return self._number("SELECT count(*) FROM messages")

    def come_to_rest(self) -> None:
        """End the requests and the telemetry, and let every outbox be emptied."""
        self._asking.stop()
        for daemon in self.daemons:
            daemon.stop()
            daemon.set_interval(3600.0)
            daemon.start()
        for daemon in self.daemons:
            wait_for(partial(_is_empty, daemon.state), "no message", timeout_s=_DRAIN_LIMIT_S)
        for daemon in self.daemons:
            daemon.stop()

    def close(self) -> None:
        self._asking.stop()
        for daemon in self.daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill()
        self.listener.close()
        self._coordinator.stop()
        self._broker.close()
        self._repository.close()

    def audit(self, killed: dict[Victim, int], *, seconds: float) -> Outcome:
        """Compare what was acknowledged with what is stored."""
        rows = self._rows("SELECT device, boot, seq, leaf, payload FROM messages")
        keys = [(device, boot, seq) for device, boot, seq, _, _ in rows]
        stored = set(keys)
        highest: dict[tuple[str, str], int] = {}
        for device, boot, seq in keys:
            highest[device, boot] = max(seq, highest.get((device, boot), 0))
        acknowledged = self.listener.acknowledged()
        return Outcome(
            killed=killed,
            boots=len(highest),
            messages=len(rows),
            acknowledged=sum(acknowledged.values()),
            lost=sum(
                (device, boot, seq) not in stored
                for (device, boot), reached in acknowledged.items()
                for seq in range(1, reached + 1)
            ),
            gaps=sum(highest.values()) - len(stored),
            twice=len(keys) - len(stored),
            requests=sum(
                figures.requests
                for *_, leaf, payload in rows
                if leaf == topics.TELEMETRY
                for figures in msgspec.json.decode(payload, type=Telemetry).models
            ),
            counted=self._number("SELECT coalesce(sum(requests), 0) FROM figures"),
            seconds=seconds,
        )

    def _start_coordinator(self) -> Process:
        return Process(
            "coordinator",
            *("--listen", "127.0.0.1:0", "--broker", self._broker.url, "--site", SITE),
            *("--state", str(self._folder / "coordinator")),
            *("--trust", str(self._public)),
            log=self._folder / "coordinator.log",
        )

    def _number(self, query: str) -> int:
        return int(self._rows(query)[0][0])

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        # Not read-only: where a coordinator was killed, the first who opens the file mends its log.
        with closing(sqlite3.connect(self.store, timeout=60)) as db:
            return db.execute(query).fetchall()


class Listener:
    """Notes, for each boot of each device, how far the coordinator has acknowledged."""

    def __init__(self, listen: Address) -> None:
        self._up = threading.Event()
        self._reached: dict[tuple[str, str], int] = {}
        self._link = MqttLink(
            BrokerAddress(listen.host, listen.port, tls=False),
            client_id="listener",
            filters=[topics.every_device(SITE, topics.ACK)],
            on_message=self._heard,
            on_connect=self._up.set,
        )
        self._link.start()
        assert self._up.wait(PATIENCE_S)

    def acknowledged(self) -> dict[tuple[str, str], int]:
        return dict(self._reached)

    def tell(self, topic: str, payload: bytes) -> None:
        assert self._link.publish(topic, payload, retain=True)

    def close(self) -> None:
        self._link.close()

    def _heard(self, topic: str, payload: bytes) -> None:
        parsed = topics.parse(topic)
        assert isinstance(parsed, topics.DeviceTopic)
        ack = messages.decode(payload, Ack, topic=topic)
        key = (f"{parsed.site}/{parsed.device}", ack.boot)
        self._reached[key] = max(ack.seq, self._reached.get(key, 0))


class Requests:
    """Asks every daemon for inferences, whether it is there or not."""

    def __init__(self, daemons: list[EdgeDaemon]) -> None:
        self._daemons = daemons
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        rows = [[0.5] * bundles.FEATURES]
        tensor = {"name": "x", "shape": [1, bundles.FEATURES], "datatype": "FP32", "data": rows}
        self._body = json.dumps({"inputs": [tensor]}).encode()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_REQUEST_EVERY_S):
            for daemon in self._daemons:
                self._ask(daemon.port)

    def _ask(self, port: int) -> None:
        url = f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer"
        try:
            with urllib.request.urlopen(url, data=self._body, timeout=5) as answer:
                answer.read()
        except (OSError, http.client.HTTPException):
            return  # the daemon was killed


def run(
    folder: Path,
    *,
    kills: int,
    at_least: int,
    daemons: int,
    interval_s: float,
    pause_s: float,
    seed: int,
    tell: Callable[[str], None],
) -> Outcome:
    """Kill so often, at random times, and go on until so many messages are stored.

    Args:
        pause_s: mean time between two kills.
        tell: hears how far it is.
    """
    rng = Random(seed)  # the order is random, and the same again with the same seed
    fleet = Fleet(folder, daemons=daemons, interval_s=interval_s)
    killed: dict[Victim, int] = dict.fromkeys(VICTIMS, 0)
    turns = [VICTIMS[turn % len(VICTIMS)] for turn in range(kills)]
    rng.shuffle(turns)
    began = time.monotonic()
    try:
        fleet.start()
        for turn, victim in enumerate(turns, start=1):
            time.sleep(rng.uniform(0.5, 1.5) * pause_s)
            fleet.kill(victim, rng)
            killed[victim] += 1
            if turn % 10 == 0:
                tell(f"{turn} kills, {fleet.stored()} messages, {time.monotonic() - began:.0f} s")
        while fleet.stored() < at_least:
            time.sleep(0.5)
        fleet.come_to_rest()
        return fleet.audit(killed, seconds=round(time.monotonic() - began, 1))
    finally:
        fleet.close()


def _is_empty(state: Path) -> bool:
    with closing(sqlite3.connect(f"file:{state / 'outbox.db'}?mode=ro", uri=True)) as db:
        return bool(db.execute("SELECT count(*) FROM messages").fetchone()[0] == 0)
