"""Updates of a device that has more to do than one: downloads make way, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from edgekit.clock import SystemClock
from edgekit.errors import EngineError
from edgekit.messages import Desired, Wanted
from edgekit.signing import SigningKey
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.fetch import Fetcher, Interrupted, Wait
from edgekit_runtime.live import Live
from edgekit_runtime.restore import RETRY_S
from edgekit_runtime.slots import RECORD, Slots
from edgekit_runtime.source import Source
from edgekit_runtime.telemetry import log_event
from edgekit_runtime.update import Reason, State
from edgekit_runtime.update_fetch import NOTE_S
from edgekit_runtime.updater import POLL_S, Updater
from tests import bundles
from tests.runtime.boards import MODEL, Board, PlugPulled, Repository, Shelf, World
from tests.system.daemons import wait_for

# Comes before the model on trial, by its name.
OTHER = "another"
STEP_S = 10.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def board(world: World, tmp_path: Path) -> Board:
    return Board(tmp_path, world.key, world.files)


def serve(board: Board, world: World, *versions: str) -> None:
    for serial, version in enumerate(versions, start=1):
        board.want(serial, world.wants[version])
        board.work()
    assert (board.serves, board.record.state) == (versions[-1], State.CONFIRMED)


def endless(world: World) -> Wanted:
    return msgspec.structs.replace(world.wants["1.0.0"], url="endless.edge", sha256="9" * 64)


class Slow:
    """A repository that has every bundle at once, but one, which never comes.

    Args:
        meanwhile: what happens while that is asked for, each time.

    Attributes:
        taken_s: how long that took, and how much less it might take than at first, each time.
    """

    def __init__(
        self,
        board: Board,
        monkeypatch: pytest.MonkeyPatch,
        *,
        meanwhile: Callable[[], None],
    ) -> None:
        self.taken_s: list[tuple[float, float]] = []
        self._board = board
        self._meanwhile = meanwhile
        self._waited_s = 0.0
        at_once = Repository.fetch

        def fetch(this: Repository, wanted: Wanted, **given: Any) -> Path:
            if wanted.url != "endless.edge":
                return at_once(this, wanted)
            less_s = board.limits.fetch_limit_s - given["limit_s"]
            self.taken_s.append((self._waited_s, less_s))
            self._wait(given["wait"])
            raise Interrupted("it makes way")

        monkeypatch.setattr(Repository, "fetch", fetch)

    def _wait(self, wait: Wait) -> None:
        for look in range(100):
            if wait(0.0):
                return
            if look == 2:
                self._meanwhile()
            self._board.hand.advance(STEP_S)
            self._waited_s += STEP_S
        raise AssertionError("the download did not make way")


@pytest.mark.parametrize("canary", [False, True])
def test_a_download_makes_way_for_a_version_on_trial_and_goes_on_with_the_time_it_had(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canary: bool
) -> None:
    limits = UpdateSection(confirm_after_s=86_400 if not canary else 30)
    board = Board(tmp_path, world.key, world.files)
    serve(board, world, "1.0.0")
    board.has_canary, board.canary_looks, board.limits = canary, 8, limits
    board.start()

    def happens() -> None:
        if board.record.state is State.ROLLED_BACK:
            board.updater.cancel(OTHER)
        else:
            board.shelf.failures = 100

    slow = Slow(board, monkeypatch, meanwhile=happens)
    board.want(2, world.wants["1.8.0" if canary else "1.1.0"])
    board.work(turns=1, pass_s=0)
    assert board.record.state is (State.CANARY if canary else State.ACTIVE)
    board.updater.want(Desired(serial=3, models={OTHER: endless(world)}))
    for _ in range(20):
        board.work(turns=1, pass_s=0)
        if Slots(board.state).read(OTHER).state is State.FAILED:
            break

    reason = Reason.CANARY_AGREEMENT if canary else Reason.ENGINE_FAILURES
    assert board.serves == "1.0.0"
    assert board.record.update is not None
    assert (board.record.state, board.record.update.reason) == (State.ROLLED_BACK, reason)
    assert board.updater.states()[OTHER].reason == "cancelled"
    assert len(slow.taken_s) > 1
    assert all(taken_s == less_s for taken_s, less_s in slow.taken_s)


@pytest.mark.parametrize("where", ["by a command", "on the board"])
def test_a_download_makes_way_for_whoever_wants_another_model_to_go_back(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    serve(board, world, "1.0.0", "1.1.0")

    def ask() -> None:
        if board.serves == "1.0.0":
            board.updater.cancel(OTHER)
        elif where == "by a command":
            board.updater.rollback(MODEL)
        else:
            Slots(board.state).ask(MODEL, "rollback")

    Slow(board, monkeypatch, meanwhile=ask)
    models = {MODEL: world.wants["1.1.0"], OTHER: endless(world)}
    board.updater.want(Desired(serial=3, models=models))
    board.work(turns=3, pass_s=0)

    # It stays so, although a newer wish than that of the version that is left names it, too.
    assert board.serves == "1.0.0"
    assert board.updater.states()[MODEL].reason == "asked"
    assert board.updater.states()[OTHER].reason == "cancelled"


def test_while_a_download_waits_for_its_hours_a_bad_version_is_left(
    world: World, tmp_path: Path
) -> None:
    """With the real fetcher and the real thread, on a board whose window is shut."""
    now = time.localtime()
    shut = f"{(now.tm_hour + 2) % 24:02d}:00-{(now.tm_hour + 3) % 24:02d}:00"
    board = Board(tmp_path, world.key, world.files)
    serve(board, world, "1.0.0")
    board.want(2, world.wants["1.1.0"])
    board.work(turns=1, pass_s=0)
    board.stop()
    clock, shelf, state = SystemClock(), Shelf(), board.state
    fetcher = Fetcher(
        state / "fetch",
        repository="http://127.0.0.1:1/",
        reserve_bytes=1,
        clock=clock,
        rng=Random(1),
        window=shut,
    )
    live = Live(
        shelf, keys=[world.key.public], engine_failures=lambda _: shelf.failures, clock=clock
    )
    updater = Updater(
        Slots(state),
        live,
        DesiredState(state),
        profile=bundles.PROFILE.name,
        keys=[world.key.public],
        limits=UpdateSection(confirm_after_s=3600, window=shut),
        source=Source(fetcher, repository=None, events=log_event, clock=clock, rng=Random(1)),
        events=log_event,
        changed=lambda: None,
        clock=clock,
    )

    def is_in(model: str, state: str) -> bool:
        return model in updater.states() and updater.states()[model].state == state

    updater.restore()
    updater.start()
    try:
        updater.want(Desired(serial=3, models={OTHER: endless(world)}))
        wait_for(lambda: is_in(OTHER, "fetching") and is_in(MODEL, "active"), "both")
        shelf.failures = 100
        wait_for(lambda: is_in(MODEL, "rolled_back"), "the version before")
        still = updater.states()[OTHER].state
    finally:
        updater.close(timeout_s=30)

    assert not updater.is_alive
    assert shelf.visible[MODEL].version == "1.0.0"
    assert still == "fetching"
    # Hours outside the window are none of its time.
    record = Slots(state).read(OTHER)
    assert record.update is not None
    assert record.update.spent_s < 1


def test_what_a_command_gave_up_is_not_done_later(board: Board, world: World) -> None:
    serve(board, world, "1.0.0", "1.1.0")
    board.updater.rollback(MODEL)
    assert board.updater.withdraw(MODEL, "rollback")
    board.work()
    assert board.serves == "1.1.0"

    # What somebody left on the board is another matter.
    board.updater.rollback(MODEL)
    Slots(board.state).ask(MODEL, "rollback")
    assert board.updater.withdraw(MODEL, "rollback")
    board.work()
    assert board.serves == "1.0.0"


def test_what_a_command_asked_for_ends_with_the_daemon(board: Board, world: World) -> None:
    serve(board, world, "1.0.0", "1.1.0")
    board.updater.rollback(MODEL)
    board.start()
    board.work()

    assert board.serves == "1.1.0"


def test_what_was_begun_cannot_be_given_up(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(board, world, "1.0.0", "1.1.0")
    board.start()
    found: list[bool] = []
    load = Shelf.load

    def slowly(self: Shelf, *given: Any, **options: Any) -> Any:
        found.append(board.updater.withdraw(MODEL, "rollback"))
        return load(self, *given, **options)

    monkeypatch.setattr(Shelf, "load", slowly)
    board.updater.rollback(MODEL)
    board.work()

    assert found == [False]
    assert board.serves == "1.0.0"


def test_the_time_limit_of_a_download_goes_on_over_kills(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits_s: list[float] = []

    def silent(self: Repository, wanted: Wanted, *, limit_s: float, wait: Wait, **_: Any) -> Path:
        """Five hours of nothing, then the plug is pulled."""
        limits_s.append(limit_s)
        for _minute in range(300):
            board.hand.advance(60)
            assert not wait(0.0)
        raise PlugPulled

    monkeypatch.setattr(Repository, "fetch", silent)
    board.want(1, world.wants["1.0.0"])
    for _ in range(4):
        with pytest.raises(PlugPulled):
            board.updater.turn()
        board.start()

    spent_s = [before - later for before, later in pairwise(limits_s)]
    assert all(5 * 3600 - NOTE_S <= one_s <= 5 * 3600 for one_s in spent_s)


def damage(board: Board) -> None:
    (board.state / "models" / MODEL / RECORD).write_bytes(b"\0" * 300)


def test_a_lost_record_lets_nothing_serve_that_is_on_trial(world: World, tmp_path: Path) -> None:
    board = Board(tmp_path, world.key, world.files, canary_looks=100)
    serve(board, world, "1.0.0")
    board.want(2, world.wants["1.8.0"])
    board.work(turns=1)
    assert board.record.state is State.CANARY
    damage(board)
    board.files = {}
    board.start()
    at_start = board.serves
    board.work(turns=1)

    # It is tried anew, from its slot: the repository has nothing any more.
    assert at_start == "1.0.0"
    assert (board.serves, board.record.state) == ("1.0.0", State.CANARY)
    board.canary_looks = 0
    board.start()
    board.work()
    assert (board.serves, board.updater.states()[MODEL].reason) == ("1.0.0", "canary_agreement")


def test_a_lost_record_does_not_bring_back_what_was_left(board: Board, world: World) -> None:
    serve(board, world, "1.0.0")
    board.want(2, world.wants["1.1.0"])
    board.work(turns=1, pass_s=1)
    board.shelf.failures = 100
    board.work()
    damage(board)
    board.start()
    board.work()

    assert board.serves == "1.0.0"
    assert board.updater.states()[MODEL].reason == "engine_failures"


def test_a_lost_record_keeps_whose_key_signed_a_slot(board: Board, world: World) -> None:
    serve(board, world, "1.0.0")
    record, keys = board.record, (world.key.public.pem.decode(),)
    held = {slot: msgspec.structs.replace(one, keys=keys) for slot, one in record.slots.items()}
    Slots(board.state).write(MODEL, msgspec.structs.replace(record, slots=held))
    damage(board)
    board.key = SigningKey.generate()
    board.start()

    assert board.serves == "1.0.0"


def test_an_only_version_serves_also_where_its_trial_is_forgotten(
    board: Board, world: World
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work(turns=1, pass_s=1)
    damage(board)
    board.start()
    before = board.record.state
    board.work()

    assert (board.serves, before, board.record.state) == ("1.0.0", State.ACTIVE, State.CONFIRMED)


class Absent:
    """An accelerator that is not there while `is_absent`; without one, some versions run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, runs_without: str = "") -> None:
        self.is_absent = True
        self.opened = 0
        load = Shelf.load

        def may(this: Shelf, bundle: Any, **options: Any) -> Any:
            self.opened += 1
            if self.is_absent and bundle.manifest.version != runs_without:
                raise EngineError("no device /dev/npu0")
            return load(this, bundle, **options)

        monkeypatch.setattr(Shelf, "load", may)


def look_again(board: Board) -> None:
    """Until nothing is being opened any more."""
    while board.updater.turn() < POLL_S:
        time.sleep(0.01)


def test_a_start_without_the_accelerator_is_no_reason_to_go_back(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(board, world, "1.0.0", "1.1.0")
    absent = Absent(monkeypatch)
    board.start()
    state, record = board.updater.states()[MODEL], board.record
    assert (state.version, state.state, state.reason) == (None, "confirmed", "engine_error")
    assert state.detail is not None
    assert "the version before fails too" in state.detail
    assert (record.serving and record.serving.version, record.previous) == ("1.1.0", "a")

    absent.is_absent = False
    look_again(board)
    assert board.updater.states()[MODEL].version is None
    board.hand.advance(RETRY_S[0])
    look_again(board)

    opened = board.updater.states()[MODEL]
    assert (board.serves, opened.state, opened.reason) == ("1.1.0", "confirmed", None)
    # The device goes back to it after the next start, too.
    assert board.record.previous == "a"


def test_what_never_opens_is_tried_a_bounded_number_of_times_and_told_once(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(board, world, "1.0.0", "1.1.0")
    absent = Absent(monkeypatch)
    board.start()
    for _ in range(12):
        board.hand.advance(max(RETRY_S))
        look_again(board)

    assert absent.opened == 2 * (1 + len(RETRY_S))
    assert [kind for kind, _ in board.told].count("slot_failed") == 2
    assert "rolled_back" not in [kind for kind, _ in board.told]


def test_a_version_that_fails_to_open_makes_way_for_one_that_opens(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(board, world, "1.0.0", "1.1.0")
    Absent(monkeypatch, runs_without="1.0.0")
    board.start()

    assert board.serves == "1.0.0"
    assert (board.record.state, board.record.previous) == (State.ROLLED_BACK, None)
    assert board.updater.states()[MODEL].reason == "engine_error"


def test_a_bundle_that_is_refused_does_not_cost_the_version_to_go_back_to(
    board: Board, world: World, tmp_path: Path
) -> None:
    serve(board, world, "1.0.0", "1.1.0")
    profile = msgspec.structs.replace(bundles.PROFILE, name="another-board")
    stranger = bundles.write(tmp_path, version="1.3.0", key=SigningKey.generate())
    other = bundles.write(tmp_path, version="1.4.0", key=world.key, profile=profile)
    wants = [
        (world.add(stranger), "untrusted"),
        (world.add(other), "wrong_profile"),
        (
            msgspec.structs.replace(world.wants["1.2.0"], digest="sha256:" + "1" * 64),
            "wrong_digest",
        ),
    ]
    for serial, (wish, reason) in enumerate(wants, start=3):
        board.want(serial, wish)
        board.work()
        assert board.updater.states()[MODEL].reason == reason
    board.updater.rollback(MODEL)
    board.work()

    assert board.serves == "1.0.0"


def cannot_show(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    activate = Shelf.activate

    def fails(self: Shelf, served: Any, **options: Any) -> None:
        if served.version == version:
            raise MemoryError("no memory for another thread")
        activate(self, served, **options)

    monkeypatch.setattr(Shelf, "activate", fails)


def test_a_version_that_cannot_be_shown_is_not_called_active(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(board, world, "1.0.0")
    cannot_show(monkeypatch, "1.1.0")
    board.want(2, world.wants["1.1.0"])
    board.work()

    state, record = board.updater.states()[MODEL], board.record
    assert (board.serves, state.version, state.state) == ("1.0.0", "1.0.0", "failed")
    assert (state.reason, record.serving and record.serving.version) == ("internal", "1.0.0")
    assert not board.shelf.idle


def test_a_version_that_cannot_be_gone_back_to_is_not_said_to_serve(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(board, world, "1.0.0", "1.1.0")
    cannot_show(monkeypatch, "1.0.0")
    board.updater.rollback(MODEL)
    board.work()

    assert (board.serves, board.updater.states()[MODEL].version) == ("1.1.0", "1.1.0")
    assert ("rollback_refused", {"model": MODEL, "reason": "asked"}) in board.told
    assert not board.shelf.idle
    assert board.record.serving is not None
    assert board.record.serving.version == "1.1.0"


def test_a_kept_version_that_cannot_be_shown_leaves_what_serves(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(board, world, "1.0.0")
    board.want(2, world.wants["1.1.0"])
    board.work(turns=1, pass_s=1)
    cannot_show(monkeypatch, "1.0.0")
    board.shelf.failures = 100
    board.work()

    state = board.updater.states()[MODEL]
    assert (board.serves, state.version, state.state) == ("1.1.0", "1.1.0", "failed")
    assert state.reason == "engine_failures"


def test_a_rollback_that_ends_in_an_error_nobody_foresaw_is_asked_for_once(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("nobody foresaw this")

    serve(board, world, "1.0.0", "1.1.0")
    monkeypatch.setattr(Shelf, "load", fails)
    Slots(board.state).ask(MODEL, "rollback")
    board.work()

    assert board.serves == "1.1.0"
    assert ("rollback_refused", {"model": MODEL, "reason": "internal"}) in board.told
    assert not Slots(board.state).asked("rollback")


def test_what_was_taken_out_by_request_is_not_said_to_serve(board: Board, world: World) -> None:
    serve(board, world, "1.0.0")
    reports = len(board.reports)
    served = board.shelf.visible.pop(MODEL)
    board.work(turns=1)
    out = board.updater.states()[MODEL].version
    board.shelf.visible[MODEL] = served
    board.work(turns=1)

    assert (out, board.updater.states()[MODEL].version) == (None, "1.0.0")
    assert [state and state.version for _, state in board.reports[reports:]] == [None, "1.0.0"]
