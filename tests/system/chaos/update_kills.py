"""Kills of a daemon in every state of an update, and what must be true after each.

The states come at random: some kills wait for a state that is short, others strike at any time.
What is checked after each: one version serves, a whole one; the record can be read; and in the end
nothing is left behind that no record names.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Protocol

import msgspec

from edgekit.bundle import Bundle
from edgekit.messages import Wanted
from edgekit_runtime.slots import Slots
from edgekit_runtime.update import UNDER_WAY, State
from tests.bundles import FEATURES
from tests.faults import GOOD, Conditions, LinkProxy
from tests.system.daemons import Coordinator, EdgeDaemon, Repository, wait_for
from tests.system.enrolled import DEVICE, Fleet

MODEL = "tiny"
STATES = sorted(state.value for state in UNDER_WAY)
# Short enough that a series of kills sees a canary through, long enough to be struck. The versions
# have nothing in common but their inputs, so that some canaries end by their time limit.
CANARY = (
    "[canary]\nmin_s = 0\nmin_samples = 8\nspacing_s = 0.0\ncpu_share = 1.0\n"
    'limit_s = 2\nidle_s = 5\non_timeout = "supervise"\n'
    "agreement_good = 0.02\nagreement_bad = 0.01\n"
    "latency_ratio_good = 50\nlatency_ratio_bad = 100\n"
    "confidence_drop_good = 0.9\nconfidence_drop_bad = 0.99\n"
)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a series of kills came to.

    Attributes:
        kills: by the state that the record was in.
        answered: requests that were answered between the kills.
        left: files that nothing names, in the end.
    """

    kills: dict[str, int]
    answered: int
    left: list[str]


class Traffic:
    """Asks the model of a daemon without end; a daemon that is away is waited for."""

    def __init__(self, device: EdgeDaemon) -> None:
        self.answered = 0
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        random = Random(5)
        while not self._stop.wait(0.005):
            rows = [[random.uniform(-1, 1) for _ in range(FEATURES)]]
            self.answered += ask(self._device, rows) is not None


def ask(device: EdgeDaemon, rows: list[list[float]]) -> Any:
    """One answer of the model; `None` where there is none now."""
    inputs = [{"name": "x", "datatype": "FP32", "shape": [len(rows), FEATURES], "data": rows}]
    connection = http.client.HTTPConnection("127.0.0.1", device.port, timeout=5)
    try:
        body = json.dumps({"inputs": inputs}).encode()
        connection.request("POST", f"/v2/models/{MODEL}/infer", body)
        answer = connection.getresponse()
        raw = answer.read()
        return json.loads(raw) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Neighbours(Protocol):
    """What tells a device what to serve, and what it fetches it from."""

    def want(self, serial: int, wish: Wanted) -> None: ...

    def slow(self, *, is_slow: bool) -> None:
        """Whether downloads take long enough to be struck in the middle."""
        ...


class Insecure:
    """A coordinator and a repository of a fleet without keys."""

    def __init__(self, coordinator: Coordinator, repository: Repository) -> None:
        self._coordinator = coordinator
        self._repository = repository

    def want(self, serial: int, wish: Wanted) -> None:
        self._coordinator.want(serial, tiny=wish)

    def slow(self, *, is_slow: bool) -> None:
        self._repository.pace_s = 0.002 if is_slow else 0.0


class Enrolled:
    """A fleet with keys: signed wishes over TLS, and its signed repository behind a slow link."""

    def __init__(self, running: Fleet, link: LinkProxy) -> None:
        self._running = running
        self._link = link

    def want(self, serial: int, wish: Wanted) -> None:
        self._running.want(serial, DEVICE, {MODEL: wish})

    def slow(self, *, is_slow: bool) -> None:
        self._link.set(Conditions(bytes_s=1_000_000) if is_slow else GOOD)


def run(
    device: EdgeDaemon, neighbours: Neighbours, wishes: list[Wanted], *, kills: int, seed: int
) -> Outcome:
    """Kill a daemon so often while it updates itself between these bundles."""
    random, killed = Random(seed), Counter[str]()
    device.start()
    try:
        return _run(device, neighbours, wishes, kills=kills, random=random, killed=killed)
    finally:
        if device.process is not None and device.process.poll() is None:
            device.kill()


def _run(
    device: EdgeDaemon,
    neighbours: Neighbours,
    wishes: list[Wanted],
    *,
    kills: int,
    random: Random,
    killed: Counter[str],
) -> Outcome:
    neighbours.want(1, wishes[0])
    wait_for(lambda: device.versions(MODEL), "the first version")
    known = {wish.version for wish in wishes}
    serial = 1
    with Traffic(device) as traffic:
        for _ in range(kills):
            serial += 1
            target = random.choice([*STATES, None])
            neighbours.slow(is_slow=target == "fetching")
            neighbours.want(serial, wishes[serial % len(wishes)])
            if target is None:
                time.sleep(random.random() * 1.5)
            else:
                _wait_for_state(device, target)
                time.sleep(random.random() * 0.02)
            killed[device.update_state(MODEL)] += 1
            device.kill()
            _check_record(device.state)
            neighbours.slow(is_slow=False)
            device.start()
            versions = wait_for(lambda: device.versions(MODEL), "a version that serves")
            assert len(versions) == 1
            assert versions[0] in known
    serial += 1
    last = wishes[serial % len(wishes)]
    neighbours.want(serial, last)
    with Traffic(device):
        wait_for(
            lambda: (
                device.versions(MODEL) == [last.version]
                and device.update_state(MODEL) == State.CONFIRMED.value
            ),
            "the last wish",
        )
    assert device.stop() == 0
    return Outcome(kills=dict(killed), answered=traffic.answered, left=left_behind(device.state))


def left_behind(state: Path) -> list[str]:
    """Files below a state folder that a daemon in good order would not have there."""
    slots = Slots(state)
    named = {
        slots.folder(model, slot) for model in slots.names() for slot in slots.read(model).slots
    }
    found = [
        *(path for path in (state / "models").glob("*/*") if path.is_dir() and path not in named),
        *(state / "fetch").glob("*"),
        *state.rglob(".*.tmp"),
        *(state / "requests").glob("*"),
    ]
    return sorted(str(path.relative_to(state)) for path in found)


def _check_record(state: Path) -> None:
    """What is on disk between two lives: a record that can be read, naming whole slots."""
    slots = Slots(state)
    record = slots.read(MODEL)
    assert record.active is not None
    for slot in record.slots:
        Bundle.open(slots.folder(MODEL, slot)).close()


def _wait_for_state(device: EdgeDaemon, target: str) -> None:
    """Until the record says so; a state that is over too soon is let go."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and device.update_state(MODEL) != target:
        pass
