"""A board for the updater's tests: real bundles, keys, slots and files.

What serves, what compares and what downloads is simulated behind the real interfaces.
"""

from __future__ import annotations

import threading
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from edgekit.bundle import Bundle, describe
from edgekit.clock import Clock
from edgekit.errors import EngineError, GoldenMismatch
from edgekit.messages import Desired, ModelState, Wanted
from edgekit.signing import SigningKey
from edgekit_runtime.canary.verdict import Verdict
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.fetch import Fetcher
from edgekit_runtime.live import Live
from edgekit_runtime.slots import Slots
from edgekit_runtime.source import Source
from edgekit_runtime.telemetry import Level
from edgekit_runtime.update import Reason, Record
from edgekit_runtime.updater import Updater
from tests import bundles
from tests.clock import ManualClock

MODEL = "tiny"


class Opened(msgspec.Struct, frozen=True):
    """A version as `Shelf` serves it."""

    version: str
    digest: str


class Shelf:
    """Serves by remembering; opens and refuses versions as their numbers say."""

    def __init__(self) -> None:
        self.visible: dict[str, Opened] = {}
        self.kept: Opened | None = None
        # Versions that somebody had opened anew, by their numbers.
        self.reopened: dict[str, Opened] = {}
        self.failures = 0
        # Threads beside which others are opened.
        self.passed: list[str] = []
        # Loaded, and neither visible nor given back.
        self.idle: list[Opened] = []

    def load(self, bundle: Bundle, *, verified_by: str | None, proven: bool = False) -> Opened:
        assert verified_by is not None
        version = bundle.manifest.version
        if version.startswith("2."):
            raise GoldenMismatch(f"{version} gives something else")
        if version.startswith("3."):
            raise EngineError(f"{version} does not open")
        self.idle.append(Opened(version, bundle.digest))
        return self.idle[-1]

    def activate(self, served: Opened, *, replace: bool = False, keep: bool = False) -> None:
        assert replace
        if served is not self.kept:
            self.idle.remove(served)
        before = self.visible.get(MODEL)
        self.kept = before if keep and before is not served else None
        self.visible[MODEL] = served

    def keeps(self, served: Opened) -> bool:
        return self.kept is served

    def present(self, served: Opened) -> Opened | None:
        if served is not self.visible.get(MODEL):
            return None
        return self.reopened.get(served.version, served)

    def release(self, name: str) -> None:
        assert name == MODEL
        self.kept = None

    def discard(self, served: Opened) -> None:
        self.idle.remove(served)

    def pass_over(self, thread: threading.Thread) -> None:
        self.passed.append(thread.name)


class Trial:
    """Judges a canary as the version's number says: 1.8 loses, the others win."""

    def __init__(self, board: Board, old: Opened, new: Opened, *, spent_s: float) -> None:
        assert old is not new
        self._board = board
        self._new = new
        self._looks = 0
        self._past_s = spent_s
        self._since_s = board.clock.monotonic()

    def verdict(self) -> Verdict | None:
        self._looks += 1
        if self._looks <= self._board.canary_looks:
            return None
        figures = {"samples": 40.0}
        if self._new.version.startswith("1.8."):
            return Verdict(
                decision="roll_back",
                reason=Reason.CANARY_AGREEMENT,
                detail="agrees in 12 of 40",
                figures=figures,
            )
        return Verdict(decision="promote", detail="agrees in 40 of 40", figures=figures)

    def progress(self) -> float:
        return min(1.0, self._looks / 10)

    @property
    def spent_s(self) -> float:
        return self._past_s + self._board.clock.monotonic() - self._since_s

    def again(self, old: Opened) -> Trial:
        self.close()
        made = self._board.compare(old, self._new, self.spent_s)
        made._looks = self._looks
        return made

    def close(self) -> None:
        self._board.open_trials.remove(self)


class PlugPulled(BaseException):
    """The process ends here."""


class Repository(Fetcher):
    """Copies what would be downloaded."""

    def __init__(self, folder: Path, files: dict[str, Path]) -> None:
        super().__init__(
            folder, repository="http://host/", reserve_bytes=1, clock=ManualClock(), rng=Random(1)
        )
        self._files = files

    def fetch(self, wanted: Wanted, **_: object) -> Path:
        part = self.part(wanted)
        part.write_bytes(self._files[wanted.url].read_bytes())
        return part


class Board:
    """One device with its disk; `pull` says after how many durable writes the plug is pulled."""

    def __init__(
        self,
        folder: Path,
        key: SigningKey,
        files: dict[str, Path],
        *,
        limits: UpdateSection | None = None,
        canary_looks: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.state = folder / "state"
        self.key = key
        self.limits = limits or UpdateSection(confirm_after_s=30)
        self.files = files
        self.canary_looks = canary_looks or 0
        self.has_canary = canary_looks is not None
        self.hand = ManualClock()
        self.clock: Clock = clock or self.hand
        self.told: list[tuple[str, dict[str, object]]] = []
        self.reports: list[tuple[int, ModelState | None]] = []
        self.start()

    def start(self) -> None:
        self.shelf = Shelf()
        self.open_trials: list[Trial] = []
        self.desired = DesiredState(self.state)
        live = Live(
            self.shelf,
            keys=[self.key.public],
            engine_failures=lambda _: self.shelf.failures,
            compare=self.compare if self.has_canary else None,
            clock=self.clock,
        )
        self.updater = Updater(
            Slots(self.state),
            live,
            self.desired,
            profile=bundles.PROFILE.name,
            keys=[self.key.public],
            limits=self.limits,
            source=Source(
                Repository(self.state / "fetch", self.files),
                repository=None,
                events=self.tell,
                clock=self.clock,
                rng=Random(1),
            ),
            events=self.tell,
            changed=self.report,
            clock=self.clock,
        )
        self.updater.restore()

    def stop(self) -> None:
        """The daemon ends in good order."""
        self.updater.close(timeout_s=1)
        Slots(self.state).note_stop()

    def compare(self, old: Opened, new: Opened, spent_s: float) -> Trial:
        self.open_trials.append(Trial(self, old, new, spent_s=spent_s))
        return self.open_trials[-1]

    def report(self) -> None:
        self.reports.append((self.desired.serial, self.updater.states().get(MODEL)))

    def tell(self, kind: str, message: str, *, level: Level = "info", **facts: object) -> None:
        self.told.append((kind, facts))

    def want(self, serial: int, what: Wanted) -> None:
        self.updater.want(Desired(serial=serial, models={MODEL: what}))

    def work(self, *, turns: int = 3, pass_s: float = 31) -> None:
        for _ in range(turns):
            self.updater.turn()
            self.hand.advance(pass_s)

    @property
    def record(self) -> Record:
        return Slots(self.state).read(MODEL)

    @property
    def serves(self) -> str | None:
        found = self.shelf.visible.get(MODEL)
        return found.version if found else None


class World:
    """Bundles that a board may be told of, made once."""

    def __init__(self, folder: Path) -> None:
        self.key = SigningKey.generate()
        self.files: dict[str, Path] = {}
        self.wants: dict[str, Wanted] = {}
        for number, version in enumerate(["1.0.0", "1.1.0", "1.2.0", "1.8.0", "2.0.0", "3.0.0"]):
            self.add(bundles.write(folder, version=version, key=self.key, seed=number))

    def add(self, path: Path, **changes: Any) -> Wanted:
        with Bundle.open(path) as bundle:
            artifact = describe(path)
            made = Wanted(
                version=bundle.manifest.version,
                digest=bundle.digest,
                url=path.name,
                sha256=artifact.sha256,
                size_bytes=artifact.size_bytes,
            )
        made = msgspec.structs.replace(made, **changes)
        self.files[path.name] = path
        self.wants[made.version] = made
        return made
