"""The updater on a real disk: what it installs, refuses and takes back, and pulled plugs."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from edgekit import storage
from edgekit.bundle import Bundle
from edgekit.errors import StorageError, UsageError
from edgekit.messages import Wanted
from edgekit.signing import SigningKey
from edgekit_runtime import update
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.slots import Request, Slots
from edgekit_runtime.update import Reason, State
from tests import bundles
from tests.runtime.boards import MODEL, Board, Opened, PlugPulled, World

ANOTHER_DIGEST = "sha256:" + "3" * 64


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def board(world: World, tmp_path: Path) -> Board:
    return Board(tmp_path, world.key, world.files)


def test_a_new_version_takes_over_and_the_old_one_stays_to_go_back_to(
    board: Board, world: World
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants["1.1.0"])
    board.work()

    assert board.serves == "1.1.0"
    assert board.record.state is State.CONFIRMED
    assert board.record.previous is not None
    assert not list((board.state / "fetch").iterdir())


@pytest.mark.parametrize(
    ("version", "reason"),
    [("2.0.0", Reason.GOLDEN_MISMATCH), ("3.0.0", Reason.ENGINE_ERROR)],
)
def test_a_version_that_fails_its_probe_never_serves(
    board: Board, world: World, version: str, reason: Reason
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants[version])
    board.work()

    assert board.serves == "1.0.0"
    state = board.updater.states()[MODEL]
    assert (state.version, state.state, state.reason) == ("1.0.0", "failed", reason.value)


def test_a_new_serial_is_never_reported_with_the_outcome_of_an_older_wish(
    board: Board, world: World
) -> None:
    board.want(1, world.wants["2.0.0"])
    board.work()
    board.want(2, world.wants["2.0.0"])
    board.work()

    after = [state.state for serial, state in board.reports if serial == 2 and state]
    assert after[0] == "fetching"
    assert after[-1] == "failed"


def change(name: str) -> Callable[[Wanted], Wanted]:
    changes: dict[str, dict[str, Any]] = {
        "digest": {"digest": ANOTHER_DIGEST},
        "version": {"version": "9.9.9"},
        "sha256": {"sha256": "0" * 64},
        "size": {"size_bytes": 7},
    }
    return lambda what: msgspec.structs.replace(what, **changes[name])


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("digest", Reason.WRONG_DIGEST),
        ("version", Reason.WRONG_MODEL),
        ("sha256", Reason.WRONG_SHA256),
        ("size", Reason.WRONG_SIZE),
    ],
)
def test_a_bundle_that_is_not_the_announced_one_is_refused(
    board: Board, world: World, what: str, reason: Reason
) -> None:
    board.want(1, change(what)(world.wants["1.0.0"]))
    board.work()

    assert board.serves is None
    assert board.updater.states()[MODEL].reason == reason.value


def test_a_bundle_signed_by_a_stranger_is_refused(
    board: Board, world: World, tmp_path: Path
) -> None:
    stranger = bundles.write(tmp_path, version="1.3.0", key=SigningKey.generate())
    board.want(1, world.add(stranger))
    board.work()

    assert board.serves is None
    assert board.updater.states()[MODEL].reason == "untrusted"


def test_a_bundle_for_another_profile_is_refused(world: World, tmp_path: Path) -> None:
    other = msgspec.structs.replace(bundles.PROFILE, name="another-board")
    path = bundles.write(tmp_path, version="1.4.0", key=world.key, profile=other)
    board = Board(tmp_path, world.key, world.files)
    board.want(1, world.add(path))
    board.work()

    assert board.updater.states()[MODEL].reason == "wrong_profile"


def test_failures_of_the_engine_bring_the_previous_version_back(board: Board, world: World) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants["1.1.0"])
    board.work(turns=1, pass_s=1)
    assert board.serves == "1.1.0"
    board.shelf.failures = 4
    board.work()

    assert board.serves == "1.0.0"
    assert board.record.state is State.ROLLED_BACK
    assert board.updater.states()[MODEL].reason == "engine_failures"


def test_a_request_on_the_board_brings_the_previous_version_back(
    board: Board, world: World
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants["1.1.0"])
    board.work()
    Slots(board.state).ask(MODEL, "rollback")
    board.work()

    assert board.serves == "1.0.0"
    assert not Slots(board.state).asked("rollback")
    board.start()
    assert board.serves == "1.0.0"


def test_a_request_that_was_left_while_the_daemon_was_away_counts_too(
    board: Board, world: World
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants["1.1.0"])
    board.work()
    Slots(board.state).ask(MODEL, "rollback")
    board.start()

    assert board.serves == "1.0.0"
    assert ("rolled_back", {"model": MODEL, "reason": "asked"}) in board.told


def test_a_slot_that_went_bad_is_left_for_the_previous_one_and_fetched_again(
    board: Board, world: World
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants["1.1.0"])
    board.work()
    active = board.record.active
    assert active is not None
    artifact = Slots(board.state).folder(MODEL, active) / "artifacts" / "float.onnx"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"?")
    board.start()
    assert board.serves == "1.0.0"

    board.work()

    assert board.serves == "1.1.0"


def test_an_older_desired_state_is_ignored_also_after_a_restart(board: Board, world: World) -> None:
    board.want(5, world.wants["1.1.0"])
    board.work()
    board.start()
    board.want(4, world.wants["1.0.0"])
    board.work()

    assert board.serves == "1.1.0"


def test_what_is_on_trial_is_not_begun_again_from_a_disk_that_cannot_count_it(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes, **_: object) -> None:
        raise StorageError(f"{path} cannot be written: No space left on device")

    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants["1.1.0"])
    board.work(turns=1, pass_s=1)
    assert board.record.state is State.ACTIVE
    monkeypatch.setattr(storage, "write", refuse)
    for _ in range(update.MAX_ATTEMPTS):
        board.start()
        state = board.updater.states()[MODEL]
        assert (board.serves, state.state, state.reason) == ("1.0.0", "rolled_back", "disk_full")
    assert ("rolled_back", {"model": MODEL, "reason": "disk_full"}) in board.told
    board.want(3, world.wants["1.2.0"])
    with pytest.raises(StorageError):
        board.work()
    assert board.serves == "1.0.0"
    monkeypatch.undo()
    board.start()
    assert board.serves == "1.1.0"
    board.work(turns=2)
    assert board.updater.states()[MODEL].state == "confirmed"


def test_an_only_version_on_trial_serves_also_from_a_disk_that_takes_nothing(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes, **_: object) -> None:
        raise StorageError(f"{path} cannot be written: No space left on device")

    board.want(1, world.wants["1.0.0"])
    board.work(turns=1, pass_s=1)
    assert board.record.state is State.ACTIVE
    monkeypatch.setattr(storage, "write", refuse)
    board.start()

    assert board.serves == "1.0.0"


@pytest.mark.parametrize("writes", range(8))
def test_a_disk_that_fills_up_at_any_write_costs_time_and_nothing_else(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    real_write, real_unpack, left = storage.write, Bundle.unpack, writes

    def take(path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StorageError(f"{path} cannot be written: No space left on device")

    def write(path: Path, data: bytes, **options: Any) -> None:
        take(path)
        real_write(path, data, **options)

    def unpack(self: Bundle, folder: Path) -> Path:
        take(folder)
        return real_unpack(self, folder)

    board.want(1, world.wants["1.0.0"])
    board.work()
    with monkeypatch.context() as full:
        full.setattr(storage, "write", write)
        full.setattr(Bundle, "unpack", unpack)
        board.want(2, world.wants["1.1.0"])
        for _ in range(4):
            with suppress(StorageError):
                board.work(turns=1)
            assert board.serves in ("1.0.0", "1.1.0")
            assert not board.shelf.idle
    board.start()
    board.work()
    board.want(3, world.wants["1.1.0"])
    board.work()

    assert board.serves == "1.1.0"
    assert board.record.state is State.CONFIRMED


def test_a_version_that_serves_does_not_fail_for_a_disk_that_is_full_once(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write, refusals = storage.write, 1

    def write(path: Path, data: bytes, **options: Any) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise StorageError(f"{path} cannot be written: No space left on device")
        real_write(path, data, **options)

    board.want(1, world.wants["1.0.0"])
    board.work(turns=1)
    before = board.record.state
    monkeypatch.setattr(storage, "write", write)
    with pytest.raises(StorageError):
        board.work(turns=1)
    board.work(turns=1)

    assert (before, board.record.state) == (State.ACTIVE, State.CONFIRMED)


def test_a_version_that_fails_leaves_its_room_to_the_next_one(board: Board, world: World) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants["2.0.0"])
    board.work()

    assert board.record.state is State.FAILED
    assert [slot.name for slot in (board.state / "models" / MODEL).iterdir() if slot.is_dir()] == [
        board.record.active
    ]


def test_a_version_that_opens_after_its_time_limit_is_closed_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path, world.key, world.files, limits=UpdateSection(probe_limit_s=0.05))
    opened, may_end = board.shelf.load, threading.Event()

    def load(bundle: Bundle, *, verified_by: str | None, proven: bool = False) -> Opened:
        may_end.wait()
        return opened(bundle, verified_by=verified_by)

    monkeypatch.setattr(board.shelf, "load", load)
    board.want(1, world.wants["1.0.0"])
    board.work()
    assert board.updater.states()[MODEL].reason == "probe_timeout"
    (prober,) = [thread for thread in threading.enumerate() if thread.name == "update-probing"]
    may_end.set()
    prober.join()

    assert board.serves is None
    assert not board.shelf.idle


@pytest.fixture
def careful(world: World, tmp_path: Path) -> Board:
    """A board that serves 1.0.0 and compares a new version twice before it decides."""
    board = Board(tmp_path, world.key, world.files, canary_looks=2)
    board.want(1, world.wants["1.0.0"])
    board.work()
    return board


def test_the_first_version_has_nothing_to_be_compared_with(careful: Board) -> None:
    assert careful.serves == "1.0.0"
    assert not careful.open_trials


def test_a_version_that_wins_its_canary_serves_with_the_figures_that_it_won_by(
    careful: Board, world: World
) -> None:
    careful.want(2, world.wants["1.1.0"])
    careful.work(turns=1)

    trying = careful.record
    assert trying.state is State.CANARY
    assert careful.serves == "1.0.0"

    careful.work(turns=4)

    record = careful.record
    assert careful.serves == "1.1.0"
    assert record.state is State.CONFIRMED
    assert record.update is not None
    assert record.update.figures == {"samples": 40.0}
    assert [facts["samples"] for kind, facts in careful.told if kind == "canary_passed"] == [40.0]
    assert not careful.open_trials
    assert not careful.shelf.idle


def test_a_version_that_loses_its_canary_never_serves_and_leaves_its_slot(
    careful: Board, world: World
) -> None:
    careful.want(2, world.wants["1.8.0"])
    careful.work(turns=4)

    record = careful.record
    assert careful.serves == "1.0.0"
    assert record.update is not None
    assert (record.state, record.update.reason) == (State.ROLLED_BACK, Reason.CANARY_AGREEMENT)
    assert record.update.figures == {"samples": 40.0}
    assert len(record.slots) == 1
    assert not Slots(careful.state).folder(MODEL, record.free).exists()
    assert ("rolled_back", "canary_agreement") in [(k, f.get("reason")) for k, f in careful.told]
    assert not careful.shelf.idle


def test_a_canary_goes_on_where_the_model_was_reloaded(careful: Board, world: World) -> None:
    careful.want(2, world.wants["1.1.0"])
    careful.work(turns=1)
    (first,) = careful.open_trials
    old = careful.shelf.visible[MODEL]
    careful.shelf.reopened["1.0.0"] = msgspec.structs.replace(old)
    careful.work(turns=1)

    (second,) = careful.open_trials
    assert second is not first

    careful.work(turns=5)
    assert careful.serves == "1.1.0"


def test_a_newer_wish_ends_a_canary(careful: Board, world: World) -> None:
    careful.want(2, world.wants["1.8.0"])
    careful.work(turns=1)
    careful.want(3, world.wants["1.2.0"])
    careful.work(turns=5)

    assert careful.serves == "1.2.0"
    assert not careful.open_trials
    assert not careful.shelf.idle


@pytest.mark.parametrize("restarts", [1, 2, 3])
def test_a_daemon_that_ends_during_a_canary_compares_anew_but_not_for_ever(
    careful: Board, world: World, restarts: int
) -> None:
    careful.want(2, world.wants["1.1.0"])
    for _ in range(restarts):
        careful.work(turns=1)
        assert careful.record.state is State.CANARY
        careful.start()
    careful.work(turns=5)

    assert careful.serves == ("1.0.0" if restarts == update.MAX_ATTEMPTS else "1.1.0")
    if restarts == update.MAX_ATTEMPTS:
        assert careful.record.update is not None
        assert careful.record.update.reason is Reason.CANARY_CRASHED


@pytest.mark.parametrize("began", [State.CANARY, State.ACTIVE])
def test_a_daemon_that_ends_in_good_order_during_a_trial_says_nothing_against_it(
    careful: Board, world: World, began: State
) -> None:
    careful.want(2, world.wants["1.1.0"])
    turns = 1 if began is State.CANARY else 3
    careful.work(turns=turns, pass_s=1)
    for _ in range(2 * update.MAX_ATTEMPTS):
        assert careful.record.state is began
        careful.stop()
        careful.start()
        careful.work(turns=1 if began is State.CANARY else 0, pass_s=1)
    careful.work(turns=5)

    assert careful.serves == "1.1.0"
    assert careful.record.state is State.CONFIRMED


def test_a_kill_after_a_stop_in_good_order_counts(careful: Board, world: World) -> None:
    careful.want(2, world.wants["1.1.0"])
    careful.work(turns=3, pass_s=1)
    careful.stop()
    for _ in range(update.MAX_ATTEMPTS + 1):
        assert careful.record.state is State.ACTIVE
        careful.start()

    assert careful.serves == "1.0.0"
    assert careful.record.update is not None
    assert careful.record.update.reason is Reason.CRASH_LOOP


def test_a_word_of_a_stop_that_cannot_be_taken_away_is_not_believed(
    careful: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(errno.EIO, "the disk does not answer")

    careful.want(2, world.wants["1.1.0"])
    careful.work(turns=1)
    careful.stop()
    monkeypatch.setattr(storage, "sync_folder", refuse)

    assert not Slots(careful.state).take_stop()


@pytest.mark.parametrize("how", ["stopped", "killed", "reloaded"])
def test_what_a_canary_has_spent_of_its_time_counts_on(
    careful: Board, world: World, how: str
) -> None:
    careful.canary_looks = 100
    careful.want(2, world.wants["1.1.0"])
    for _ in range(2):
        # The progress of this board's trials grows by a tenth at each look.
        careful.work(turns=4, pass_s=100)
        if how == "stopped":
            careful.stop()
        if how == "reloaded":
            old = careful.shelf.visible[MODEL]
            careful.shelf.reopened["1.0.0"] = msgspec.structs.replace(old)
        else:
            careful.start()
    careful.work(turns=1, pass_s=0)

    (trial,) = careful.open_trials
    # A kill costs what passed since the progress was last kept.
    assert trial.spent_s == 800 if how != "killed" else trial.spent_s >= 400


def test_an_update_that_is_cancelled_during_its_canary_leaves_nothing(
    careful: Board, world: World
) -> None:
    careful.want(2, world.wants["1.1.0"])
    careful.work(turns=1)
    careful.updater.cancel(MODEL)
    careful.work(turns=2)

    record = careful.record
    assert careful.serves == "1.0.0"
    assert record.update is not None
    assert (record.state, record.update.reason) == (State.FAILED, Reason.CANCELLED)
    assert len(record.slots) == 1
    assert not careful.open_trials
    assert not careful.shelf.idle
    assert Slots(careful.state).asked("cancel") == []


def test_what_serves_cannot_be_cancelled(careful: Board) -> None:
    with pytest.raises(UsageError, match="no update"):
        careful.updater.cancel(MODEL)


def test_a_rollback_without_a_previous_version_is_refused(careful: Board) -> None:
    with pytest.raises(UsageError, match="no version to go back to"):
        careful.updater.rollback(MODEL)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, Reason.DISK_FULL), (errno.EROFS, Reason.READ_ONLY)],
)
def test_a_disk_that_takes_nothing_refuses_a_wish_with_its_reason_and_takes_it_later(
    careful: Board, world: World, number: int, reason: Reason
) -> None:
    def refuse(path: Path, data: bytes, **_: Any) -> None:
        cause = OSError(number, "no")
        raise StorageError(f"{path} cannot be written") from cause

    careful.want(2, world.wants["1.1.0"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write", refuse)
        with pytest.raises(StorageError):
            careful.work(turns=1)
        state = careful.updater.states()[MODEL]

    assert (state.state, state.reason, state.version) == ("failed", reason.value, "1.0.0")
    assert ("update_failed", reason.value) in [(k, f.get("reason")) for k, f in careful.told]

    careful.work(turns=6)
    assert careful.serves == "1.1.0"


class Plugs(RuleBasedStateMachine):
    """Wishes, work, requests and pulled plugs in any order: something always serves."""

    def __init__(self, world: World, folder: Path) -> None:
        super().__init__()
        self.wants = world.wants
        self.board = Board(folder, world.key, world.files, canary_looks=1)
        self.serial = 1
        self.board.want(1, world.wants["1.0.0"])
        self.board.work()

    @rule(version=st.sampled_from(["1.0.0", "1.1.0", "1.2.0", "1.8.0", "2.0.0", "3.0.0"]))
    def want(self, version: str) -> None:
        self.serial += 1
        self.board.want(self.serial, self.wants[version])

    @rule(turns=st.integers(1, 3), pass_s=st.sampled_from([0.0, 31.0]))
    def work(self, turns: int, pass_s: float) -> None:
        self.board.work(turns=turns, pass_s=pass_s)

    @rule()
    def fail_engine(self) -> None:
        self.board.shelf.failures = 100

    @rule(request=st.sampled_from(["rollback", "cancel"]))
    def ask(self, request: Request) -> None:
        Slots(self.board.state).ask(MODEL, request)

    @rule(writes=st.integers(0, 12), restarts=st.integers(0, 3))
    def pull_the_plug(self, writes: int, restarts: int) -> None:
        """The process ends before or after a durable write, and perhaps again while it starts."""
        with plug_pulled(after=writes):
            self.board.work(turns=2)
        for after in range(restarts):
            with plug_pulled(after=after):
                self.board.start()
        self.board.start()

    @rule(writes=st.integers(0, 4))
    def stop(self, writes: int) -> None:
        """The daemon ends in good order, or is killed while it does or when it starts again."""
        with plug_pulled(after=writes):
            self.board.stop()
            self.board.start()
        self.board.start()

    @invariant()
    def something_serves_and_is_the_active_slot(self) -> None:
        record = self.board.record
        assert self.board.serves in ("1.0.0", "1.1.0", "1.2.0")
        assert record.serving is not None
        assert record.serving.version == self.board.serves
        for slot in record.slots:
            Bundle.open(Slots(self.board.state).folder(MODEL, slot)).close()

    @invariant()
    def only_a_canary_holds_a_version_that_does_not_serve(self) -> None:
        is_trying = self.board.record.state is State.CANARY
        assert len(self.board.open_trials) == len(self.board.shelf.idle) <= int(is_trying)


@contextmanager
def plug_pulled(*, after: int) -> Iterator[None]:
    """Let the process end right before or right after one of its durable writes."""
    left = after
    real_write, real_unpack = storage.write, Bundle.unpack

    def count() -> None:
        nonlocal left
        if left == 0:
            raise PlugPulled
        left -= 1

    def write(path: Path, data: bytes, **options: Any) -> None:
        count()
        real_write(path, data, **options)
        count()

    def unpack(self: Bundle, folder: Path) -> Path:
        count()
        done = real_unpack(self, folder)
        count()
        return done

    with pytest.MonkeyPatch.context() as patch, suppress(PlugPulled):
        patch.setattr(storage, "write", write)
        patch.setattr(Bundle, "unpack", unpack)
        yield


def test_whenever_the_plug_is_pulled_the_old_or_the_new_version_serves(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    boards = iter(lambda: tmp_path_factory.mktemp("board"), None)

    class Here(Plugs):
        def __init__(self) -> None:
            super().__init__(world, next(boards))

    run_state_machine_as_test(Here, settings=settings(max_examples=25, stateful_step_count=20))
