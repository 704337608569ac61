"""Start-up with engines that really hang: a real daemon, real slots, and real networks."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import Bundle, describe
from edgekit.clock import SystemClock
from edgekit.messages import Desired, Wanted
from edgekit.signing import SigningKey, new_pair
from edgekit_converters.demo.processes import free_port
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.engines import Session
from edgekit_runtime.live import Live
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.plan import Plan, measure
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.turns import Turns
from edgekit_runtime.slots import STOPPED, Slots
from edgekit_runtime.telemetry import Level
from edgekit_runtime.update import Installed, Reason, Record, SlotName, State, Update
from edgekit_runtime.updater import Updater
from tests import bundles
from tests.runtime import hanging
from tests.system.daemons import wait_for

LIMIT_S = 3.0
PATIENCE_S = 30.0
ROOT = Path(__file__).parents[2]
DAEMON = ("from edgekit.cli import daemon_main; daemon_main()", "--config")


class Shelf:
    """A state folder that is filled as updates would have left it."""

    def __init__(self, folder: Path) -> None:
        self.place = folder
        private, self.public = new_pair(folder / "keys")
        self.key = SigningKey.read(private)
        self.state = folder / "state"
        self.log = folder / "daemon.log"
        self.slots = Slots(self.state)

    def put(
        self,
        model: str,
        *,
        active: Path,
        previous: Path | None = None,
        state: State = State.CONFIRMED,
    ) -> None:
        """Install versions of a model, whose latest update is in this state."""
        held: dict[SlotName, Installed] = {"a": self._install(model, "a", active)}
        if previous is not None:
            held["b"] = self._install(model, "b", previous)
        wanted = Wanted(
            version=held["a"].version,
            digest=held["a"].digest,
            url="x",
            sha256=describe(active).sha256,
            size_bytes=active.stat().st_size,
        )
        update = Update(serial=1, wanted=wanted, state=state, slot="a")
        record = Record(
            slots=held, active="a", previous="b" if previous is not None else None, update=update
        )
        self.slots.write(model, record)

    def good(self, model: str, version: str = "1.0.0") -> Path:
        return bundles.write(self.place, name=model, version=version, key=self.key)

    def hanging(self, model: str, version: str = "1.1.0") -> Path:
        return hanging.write(self.place, name=model, version=version, key=self.key)

    def _install(self, model: str, slot: SlotName, edge: Path) -> Installed:
        with Bundle.open(edge) as bundle:
            self.slots.install(model, slot, bundle)
            return Installed(version=bundle.manifest.version, digest=bundle.digest)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """`first` hangs and has a version before, `last` is well, `only` hangs and has none."""
    made = Shelf(tmp_path)
    made.put("first", active=made.hanging("first"), previous=made.good("first"))
    made.put("last", active=made.good("last"))
    made.put("only", active=made.hanging("only"))
    return made


@contextmanager
def daemon(
    shelf: Shelf, port: int, *, inside: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """`edgekitd`, and the socket of a service manager that wants signs of life."""
    config = shelf.place / "device.toml"
    config.write_text(
        '[device]\nsite = "demo"\nid = "b"\nprofile = "generic-x86_64"\n'
        f'[state]\nfolder = "{shelf.state}"\n[serve]\nlisten = "127.0.0.1:{port}"\n'
        f'workers = "thread"\n[trust]\nkeys = ["{shelf.public}"]\n'
        f"[update]\nprobe_limit_s = {LIMIT_S}\nconfirm_after_s = 3600\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, shelf.log.open("ab") as log:
        manager.bind(str(shelf.place / "notify"))
        manager.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            [*inside, sys.executable, "-W", "error", "-c", *DAEMON, str(config)],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(shelf.place / "notify"),
                "WATCHDOG_USEC": "300000",
            },
            stderr=log,
            cwd=ROOT,
        )
        try:
            yield process, manager
        finally:
            process.kill()
            process.wait()
            (shelf.place / "notify").unlink()


def heard(manager: socket.socket, message: bytes) -> bool:
    """Whether the daemon says this among a bounded number of other things."""
    return any(message in manager.recv(4096).splitlines() for _ in range(300))


def versions(port: int, model: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", f"/v2/models/{model}")
        answer = connection.getresponse()
        body = answer.read()
        return json.loads(body)["versions"] if answer.status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


@pytest.mark.system
def test_a_daemon_serves_and_lives_beside_engines_that_hang_while_it_starts(shelf: Shelf) -> None:
    port = free_port()
    with daemon(shelf, port) as (process, manager):
        assert heard(manager, b"READY=1")
        wait_for(lambda: versions(port, "last") == ["1.0.0"], "the model that is well")
        meanwhile = versions(port, "first")
        wait_for(lambda: versions(port, "first") == ["1.0.0"], "the version before")
        wait_for(lambda: failed(shelf) == {"first", "only"}, "both reasons")
        assert heard(manager, b"WATCHDOG=1")
        record = shelf.slots.read("first")
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)

    assert meanwhile is None
    assert record.update is not None
    assert (record.state, record.update.reason) == (State.ROLLED_BACK, Reason.PROBE_TIMEOUT)
    assert code == 0
    assert "Traceback" not in shelf.log.read_text()


def failed(shelf: Shelf) -> set[str]:
    """Models of which the log says that they were over their time limit."""
    lines = [json.loads(line) for line in shelf.log.read_text().splitlines()]
    return {line["model"] for line in lines if line.get("reason") == "probe_timeout"}


@pytest.fixture
def trying(tmp_path: Path) -> Shelf:
    """1.1.0 serves on trial, 1.0.0 is what served before."""
    made = Shelf(tmp_path)
    made.put("it", active=made.good("it", "1.1.0"), previous=made.good("it"), state=State.ACTIVE)
    return made


def serves(shelf: Shelf, *, end: signal.Signals, inside: Sequence[str] = ()) -> Any:
    """What a daemon serves from its start to this end."""
    port = free_port()
    with daemon(shelf, port, inside=inside) as (process, manager):
        assert heard(manager, b"READY=1")
        found = wait_for(lambda: versions(port, "it"), "a version that serves")
        process.send_signal(end)
        assert process.wait(PATIENCE_S) == (0 if end is signal.SIGTERM else -end)
    return found


@pytest.mark.system
def test_clean_restarts_end_no_trial_and_kills_do(trying: Shelf) -> None:
    stopped = [serves(trying, end=signal.SIGTERM) for _ in range(3)]
    killed = [serves(trying, end=signal.SIGKILL) for _ in range(3)]

    # The first start follows no end in good order and counts, the three after it do not.
    assert stopped == [["1.1.0"]] * 3
    assert killed == [["1.1.0"], ["1.1.0"], ["1.0.0"]]
    update = trying.slots.read("it").update
    assert update is not None
    assert (update.state, update.reason) == (State.ROLLED_BACK, Reason.CRASH_LOOP)


@contextmanager
def small_disk(shelf: Shelf) -> Iterator[tuple[Path, Sequence[str]]]:
    """Move the state to a disk of its own: how this process sees it, and how to run within."""
    kept = shelf.state.rename(shelf.place / "kept")
    shelf.state.mkdir()
    script = 'mount -t tmpfs -o size=2m tmpfs "$1"; cp -a "$2/." "$1"; echo; exec sleep 600'
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(shelf.state), str(kept)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            if not holder.stdout.readline():
                pytest.skip("needs the right to mount")
            place = Path(f"/proc/{holder.pid}/root") / shelf.state.relative_to("/")
            yield place, ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"]
        finally:
            holder.kill()


@pytest.mark.system
def test_what_kills_the_daemon_on_a_full_disk_makes_way_until_its_starts_can_be_counted(
    trying: Shelf,
) -> None:
    with small_disk(trying) as (disk, inside):
        before = serves(trying, end=signal.SIGKILL, inside=inside)
        fill(disk / "filler")
        full = serves(trying, end=signal.SIGKILL, inside=inside)
        # Whether or not the word of a clean end fits, 1.1.0 is not begun uncounted.
        cleanly = serves(trying, end=signal.SIGTERM, inside=inside)
        record = Slots(disk).read("it")
        (disk / "filler").unlink()
        (disk / STOPPED).unlink(missing_ok=True)
        after = [serves(trying, end=signal.SIGKILL, inside=inside) for _ in range(2)]

    assert before == ["1.1.0"]
    assert full == cleanly == ["1.0.0"]
    assert record.state is State.ACTIVE
    assert after == [["1.1.0"], ["1.0.0"]]
    log = [json.loads(line) for line in trying.log.read_text().splitlines()]
    assert [line["reason"] for line in log if line["event"] == "rolled_back"] == [
        "disk_full",
        "disk_full",
        "crash_loop",
    ]


def fill(path: Path) -> None:
    """Write until not a byte more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


class Gate:
    """Measures a session's runs, and holds the first of a model until it is opened."""

    def __init__(self, model: str) -> None:
        self.held = {f"start {model}"}
        self.opened = threading.Event()

    def __call__(self, session: Session, sample: Any, **options: Any) -> Plan:
        if (name := threading.current_thread().name) in self.held:
            self.held.remove(name)
            assert self.opened.wait(PATIENCE_S)
        return measure(session, sample, **options)


class Watched(Models):
    """Remembers what was given back."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(measure=gate)
        self.discarded: list[Served] = []

    def discard(self, served: Served) -> None:
        super().discard(served)
        self.discarded.append(served)


class Board:
    """The updater over real engines, without the rest of a daemon."""

    def __init__(self, shelf: Shelf, gate: Gate) -> None:
        self.models = Watched(gate)
        self.told: list[tuple[str, object]] = []
        self.live: Live[Served] = Live(
            self.models, keys=[shelf.key.public], engine_failures=lambda _: 0, clock=SystemClock()
        )
        self.updater = Updater(
            shelf.slots,
            self.live,
            DesiredState(shelf.state),
            profile=bundles.PROFILE.name,
            keys=[shelf.key.public],
            limits=UpdateSection(probe_limit_s=1.0),
            source=None,
            events=self.tell,
            changed=lambda: None,
            clock=SystemClock(),
        )

    def tell(self, kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        self.told.append((kind, facts.get("model")))

    def turn_until(self, condition: Callable[[], bool]) -> None:
        wait_for(lambda: self.updater.turn() and condition(), "the start")

    def close(self) -> None:
        self.updater.close(timeout_s=PATIENCE_S)
        self.models.close()


def test_a_version_that_opens_too_late_serves_where_there_is_no_other(tmp_path: Path) -> None:
    shelf, gate = Shelf(tmp_path), Gate("only")
    shelf.put("only", active=shelf.good("only"))
    with closing(Board(shelf, gate)) as board:
        board.updater.restore()
        board.turn_until(lambda: board.updater.states()["only"].reason is not None)
        late = board.updater.states()["only"]
        gate.opened.set()
        board.turn_until(lambda: board.models.versions("only") == ["1.0.0"])
        state = board.updater.states()["only"]

    assert (late.version, late.state, late.reason) == (None, "confirmed", "probe_timeout")
    assert (state.version, state.state, state.reason) == ("1.0.0", "confirmed", None)
    assert board.told == [("slot_failed", "only")]


def test_a_version_that_opens_too_late_is_closed_where_another_has_its_place(
    tmp_path: Path,
) -> None:
    shelf, gate = Shelf(tmp_path), Gate("first")
    shelf.put("first", active=shelf.good("first", "1.1.0"), previous=shelf.good("first"))
    with closing(Board(shelf, gate)) as board:
        board.updater.restore()
        (late,) = [one for one in threading.enumerate() if one.name == "start first"]
        board.turn_until(lambda: board.models.versions("first") == ["1.0.0"])
        gate.opened.set()
        late.join()
        versions = board.models.versions("first")

    assert versions == ["1.0.0"]
    assert [served.version for served in board.models.discarded] == ["1.1.0"]
    assert board.told == [("slot_failed", "first"), ("rolled_back", "first")]


def test_an_update_waits_until_it_is_known_what_serves(tmp_path: Path) -> None:
    """Else it would be compared with nothing, and serve without a canary."""
    shelf, gate = Shelf(tmp_path), Gate("only")
    shelf.put("only", active=shelf.good("only"))
    digest = "sha256:" + "1" * 64
    wish = Wanted(version="1.1.0", digest=digest, url="x", sha256="0" * 64, size_bytes=1)
    with closing(Board(shelf, gate)) as board:
        board.updater.restore()
        board.updater.want(Desired(serial=2, models={"only": wish}))
        board.updater.turn()
        before = shelf.slots.read("only").state
        gate.opened.set()
        board.turn_until(lambda: shelf.slots.read("only").state is State.FETCHING)
        serves = board.models.versions("only")

    assert before is State.CONFIRMED
    assert serves == ["1.0.0"]


def test_who_has_the_turn_and_hangs_is_passed_over_for_good() -> None:
    turns, entered, may_end = Turns(), threading.Event(), threading.Event()

    def hang() -> None:
        for _ in range(2):
            with turns.take():
                entered.set()
                may_end.wait()

    hung = threading.Thread(target=hang)
    hung.start()
    assert entered.wait(PATIENCE_S)
    turns.pass_over(hung)
    order: list[str] = []
    with turns.take():
        order.append("another")
        may_end.set()
    hung.join()
    with turns.take():
        order.append("a third")

    assert order == ["another", "a third"]
