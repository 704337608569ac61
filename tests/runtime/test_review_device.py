"""What an update must bear: full disks, lost files, hung engines, wishes that come again."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from edgekit import storage
from edgekit.bundle import Bundle
from edgekit.errors import EngineError, Overloaded, StorageError
from edgekit.signing import SigningKey
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.desired import FILE
from edgekit_runtime.fetch import Fetcher, Progress
from edgekit_runtime.live import Live
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.slots import RECORD, SETTLED
from edgekit_runtime.update import MAX_ATTEMPTS, State
from tests import bundles
from tests.runtime.boards import MODEL, Board, PlugPulled, Repository, Shelf, World
from tests.runtime.served import load
from tests.runtime.test_review_serving import ONE_MODEL, Slow
from tests.runtime.test_updater import Plugs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def board(world: World, tmp_path: Path) -> Board:
    return Board(tmp_path, world.key, world.files)


@pytest.fixture
def careful(world: World, tmp_path: Path) -> Board:
    """A board that serves 1.1.0, can go back to 1.0.0, and compares versions before it decides."""
    board = Board(tmp_path, world.key, world.files, canary_looks=2)
    for serial, version in enumerate(["1.0.0", "1.1.0"], start=1):
        board.want(serial, world.wants[version])
        board.work(turns=6)
    assert board.serves == "1.1.0"
    return board


@contextmanager
def full_disk(*, after: int = 0) -> Iterator[None]:
    """After so many writes the disk takes nothing more."""
    real_write, real_unpack, left = storage.write, Bundle.unpack, after

    def take(path: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StorageError(f"{path} cannot be written") from OSError(errno.ENOSPC, "full")

    def write(path: Path, data: bytes, **options: Any) -> None:
        take(path)
        real_write(path, data, **options)

    def unpack(self: Bundle, folder: Path) -> Path:
        take(folder)
        return real_unpack(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write", write)
        patch.setattr(Bundle, "unpack", unpack)
        yield


def activate(board: Board, world: World) -> None:
    """1.1.0 serves on trial, 1.0.0 is kept."""
    board.want(1, world.wants["1.0.0"])
    board.work()
    board.want(2, world.wants["1.1.0"])
    board.work(turns=1, pass_s=1)
    assert board.record.state is State.ACTIVE


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, version: str, error: BaseException) -> None:
    real = Shelf.load

    def load(self: Shelf, bundle: Bundle, **options: Any) -> Any:
        if bundle.manifest.version == version:
            raise error
        return real(self, bundle, **options)

    monkeypatch.setattr(Shelf, "load", load)


def test_a_full_disk_does_not_keep_a_version_serving_whose_engine_fails(
    board: Board, world: World
) -> None:
    activate(board, world)
    board.shelf.failures = 100
    with full_disk():
        board.work(turns=2)
        state = board.updater.states()[MODEL]

    assert board.serves == "1.0.0"
    assert (state.version, state.state, state.reason) == ("1.0.0", "rolled_back", "engine_failures")


def test_a_wish_that_cannot_be_stored_does_not_keep_such_a_version_serving_either(
    board: Board, world: World
) -> None:
    activate(board, world)
    board.shelf.failures = 100
    board.want(3, world.wants["1.2.0"])
    with full_disk(), pytest.raises(StorageError):
        board.work(turns=1)

    assert board.serves == "1.0.0"


def test_a_version_that_failed_with_nothing_to_go_back_to_is_never_called_confirmed(
    board: Board, world: World
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work(turns=1, pass_s=1)
    board.shelf.failures = 100
    board.work(turns=4)

    state = board.updater.states()[MODEL]
    assert (state.version, state.state, state.reason) == ("1.0.0", "failed", "engine_failures")


def test_an_only_version_that_no_longer_opens_leaves_the_way_free_for_another(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work(turns=1, pass_s=1)
    assert board.record.state is State.ACTIVE
    refuse_to_open(monkeypatch, "1.0.0", EngineError("another driver"))
    board.start()
    assert board.updater.states()[MODEL].reason == "engine_error"
    board.want(2, world.wants["1.1.0"])
    board.work()

    assert board.serves == "1.1.0"


def test_who_goes_back_to_what_is_just_being_tried_has_it_at_once(
    careful: Board, world: World
) -> None:
    careful.want(3, world.wants["1.0.0"])
    careful.work(turns=1)
    before = careful.record.state
    careful.updater.rollback(MODEL)
    careful.work(turns=4)

    assert careful.serves == "1.0.0"
    assert (before, careful.record.state) == (State.CANARY, State.CONFIRMED)
    assert not careful.open_trials
    assert not careful.shelf.idle


def test_a_canary_that_cannot_begin_leaves_nothing_open(
    careful: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Live, "try_out", refuse)
    careful.want(3, world.wants["1.2.0"])
    careful.work(turns=2)

    assert careful.serves == "1.1.0"
    assert careful.updater.states()[MODEL].reason == "internal"
    assert not careful.shelf.idle


def test_a_wish_that_a_full_disk_refuses_ends_the_canary_that_it_would_replace(
    careful: Board, world: World
) -> None:
    careful.want(3, world.wants["1.2.0"])
    careful.work(turns=1)
    assert careful.open_trials
    careful.want(4, world.wants["1.0.0"])
    with full_disk(), suppress(StorageError):
        careful.work(turns=1)

    assert not careful.open_trials
    assert not careful.shelf.idle


def test_what_ends_the_daemon_is_not_tried_for_ever_where_nobody_can_count(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.want(1, world.wants["1.0.0"])
    board.work()
    with monkeypatch.context() as patch:
        refuse_to_open(patch, "1.1.0", PlugPulled())
        board.want(2, world.wants["1.1.0"])
        with pytest.raises(PlugPulled):
            board.work()
        with full_disk():
            board.start()
            board.work()
            state = board.updater.states()[MODEL]

    assert (state.version, state.state, state.reason) == ("1.0.0", "failed", "disk_full")
    assert board.serves == "1.0.0"
    board.start()
    board.work()
    assert board.serves == "1.1.0"


def test_a_version_without_room_in_memory_says_so(
    board: Board, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_open(monkeypatch, "1.0.0", Overloaded("no room", retry_after_s=1.0))
    board.want(1, world.wants["1.0.0"])
    board.work()

    assert board.updater.states()[MODEL].reason == "probe_memory"


@pytest.mark.parametrize("began", [State.ACTIVE, State.CANARY])
def test_an_update_that_ends_because_the_daemon_did_is_told(
    careful: Board, world: World, began: State
) -> None:
    careful.want(3, world.wants["1.2.0"])
    careful.work(turns=1 if began is State.CANARY else 3, pass_s=1)
    for _ in range(MAX_ATTEMPTS):
        assert careful.record.state is began
        careful.start()
        careful.work(turns=1 if began is State.CANARY else 0, pass_s=1)

    told = {
        State.ACTIVE: ("rolled_back", "crash_loop"),
        State.CANARY: ("update_failed", "canary_crashed"),
    }
    assert told[began] in [(kind, facts.get("reason")) for kind, facts in careful.told]
    assert careful.serves == "1.1.0"


def downloading(board: Board, world: World, shares: list[float]) -> Any:
    """What the record says of a download that came by these shares, ten seconds for each."""

    def fetch(self: Fetcher, wanted: object, *, progress: Progress, **_: object) -> Path:
        for share in shares:
            board.hand.advance(10)
            progress(share)
        seen.append(board.record.update)
        raise StorageError("that is all")

    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "fetch", fetch)
        board.want(1, world.wants["1.0.0"])
        board.work(turns=1)
    return seen[0]


def test_each_second_of_a_download_counts_once(board: Board, world: World) -> None:
    wish = downloading(board, world, [0.25, 0.5, 0.75])

    assert (wish.spent_s, wish.progress) == (30.0, 0.75)


def test_a_download_that_begins_anew_says_so(board: Board, world: World) -> None:
    wish = downloading(board, world, [0.5, 1.0, 0.25])

    assert (wish.spent_s, wish.progress) == (30.0, 0.25)


def test_what_is_unpacked_too_late_touches_no_slot(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path, world.key, world.files)
    board.want(1, world.wants["1.0.0"])
    board.work()
    real, may_end = Bundle.unpack, threading.Event()

    def unpack(self: Bundle, folder: Path) -> Path:
        if self.manifest.version == "1.1.0":
            may_end.wait()
        return real(self, folder)

    monkeypatch.setattr(Bundle, "unpack", unpack)
    board.limits = UpdateSection(verify_limit_s=0.5)
    board.start()
    board.want(2, world.wants["1.1.0"])
    board.work()
    assert board.updater.states()[MODEL].reason == "verify_timeout"
    (late,) = [thread for thread in threading.enumerate() if thread.name == "update-verifying"]
    board.limits = UpdateSection(confirm_after_s=30)
    board.start()
    board.want(3, world.wants["1.2.0"])
    board.work()
    may_end.set()
    late.join()

    assert board.serves == "1.2.0"
    home = board.state / "models" / MODEL
    assert sorted(path.name for path in home.iterdir()) == ["a", "b", SETTLED, RECORD]
    for slot, held in board.record.slots.items():
        with Bundle.open(home / slot) as bundle:
            assert bundle.digest == held.digest


def test_a_probe_that_hangs_is_known_to_be_overdue_until_it_ends(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path, world.key, world.files, limits=UpdateSection(probe_limit_s=0.05))
    real, may_end = Shelf.load, threading.Event()

    def load(self: Shelf, bundle: Bundle, **options: Any) -> Any:
        may_end.wait()
        return real(self, bundle, **options)

    monkeypatch.setattr(Shelf, "load", load)
    board.want(1, world.wants["1.0.0"])
    board.work()
    (prober,) = [thread for thread in threading.enumerate() if thread.name == "update-probing"]
    was_overdue = board.updater.is_overdue
    may_end.set()
    prober.join()

    assert was_overdue
    assert not board.updater.is_overdue


def test_a_daemon_that_ends_waits_for_no_probe_and_goes_on_with_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path, world.key, world.files)
    real, began, may_end = Shelf.load, threading.Event(), threading.Event()

    def load(self: Shelf, bundle: Bundle, **options: Any) -> Any:
        began.set()
        may_end.wait()
        return real(self, bundle, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "load", load)
        board.want(1, world.wants["1.0.0"])
        board.updater.start()
        assert began.wait(60)
        (prober,) = [one for one in threading.enumerate() if one.name == "update-probing"]
        board.updater.close(timeout_s=60)
        has_ended, passed = not board.updater.is_alive, board.shelf.passed
        may_end.set()
        prober.join()
    assert has_ended
    assert passed == ["update-probing"]
    assert not board.shelf.idle
    board.stop()
    board.start()
    record = board.record

    assert record.update is not None
    assert (record.state, record.update.attempts) == (State.PROBING, 1)
    board.work()
    assert board.serves == "1.0.0"


def test_a_version_that_makes_room_for_one_that_hangs_is_known_to_answer_nothing(
    tmp_path: Path,
) -> None:
    hangs = Slow(free=1)
    models = Models(Settings(memory_bytes=ONE_MODEL), measure=hangs)
    load(models, tmp_path)
    bundle, opened = bundles.unpacked(tmp_path, version="1.1.0"), list[Served]()
    ready = [models.are_ready]
    opening = threading.Thread(target=lambda: opened.append(models.load(bundle, verified_by="k")))
    opening.start()
    assert hangs.asked.wait(10)
    ready.append(models.are_ready)
    hangs.go_on.set()
    opening.join()
    models.discard(opened[0])
    models.close()

    assert ready == [True, False]


def test_a_slot_that_holds_another_bundle_than_its_record_says_does_not_serve(
    board: Board, world: World
) -> None:
    activate(board, world)
    home = board.state / "models" / MODEL
    active, previous = board.record.active, board.record.previous
    assert active is not None
    assert previous is not None
    shutil.rmtree(home / active)
    shutil.copytree(home / previous, home / active)
    board.start()

    state = board.updater.states()[MODEL]
    assert (board.serves, state.version, state.reason) == ("1.0.0", "1.0.0", "slot_damaged")


@pytest.mark.parametrize("how", ["lost", "unreadable"])
def test_a_record_that_the_disk_lost_takes_no_slot_with_it(
    board: Board, world: World, how: str
) -> None:
    activate(board, world)
    path = board.state / "models" / MODEL / RECORD
    path.unlink()
    if how == "unreadable":
        path.mkdir()
    board.start()

    assert board.serves == "1.0.0"
    assert len(board.record.slots) == 2


@pytest.mark.parametrize("how", ["damaged", "lost", "unreadable"])
def test_a_broker_cannot_hand_an_older_wish_in_where_the_last_one_was_lost(
    board: Board, world: World, how: str
) -> None:
    board.want(5, world.wants["1.1.0"])
    board.work()
    path = board.state / FILE
    path.unlink()
    if how == "unreadable":
        path.mkdir()
    elif how == "damaged":
        path.write_bytes(b"{")
    board.start()
    board.want(4, world.wants["1.0.0"])
    board.work()

    assert board.serves == "1.1.0"
    assert board.desired.serial == 5


def test_a_staged_bundle_is_probed_with_the_keys_that_it_came_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the wish for it was taken back and comes again, and nothing is fetched."""
    world = World(tmp_path / "bundles")
    release = SigningKey.generate()
    made = bundles.write(tmp_path, version="1.5.0", key=release)
    wanted = world.add(made)
    pem = release.public.pem.decode()
    monkeypatch.setattr("edgekit_runtime.source.Source.fetch", keyed(pem))
    board = Board(tmp_path, world.key, world.files, canary_looks=2)
    board.want(1, world.wants["1.0.0"])
    board.work(turns=4)
    board.want(2, wanted)
    board.work(turns=1)
    assert board.record.state is State.CANARY
    board.want(3, world.wants["1.0.0"])
    board.work(turns=2)
    board.want(4, wanted)
    board.work(turns=6)

    assert board.serves == "1.5.0"


def keyed(pem: str) -> Any:
    """A source that names a key, as the signed repository does."""

    def fetch(self: Any, wanted: Any, **options: Any) -> tuple[str, ...]:
        self._fetcher.fetch(wanted, **options)
        return (pem,)

    return fetch


class Disks(Plugs):
    """The same board, whose disk also fills up between any two writes."""

    @rule(writes=st.integers(0, 12), turns=st.integers(1, 3))
    def fill_the_disk(self, writes: int, turns: int) -> None:
        with full_disk(after=writes):
            for _ in range(turns):
                with suppress(StorageError):
                    self.board.work(turns=1)
                assert self.board.serves in ("1.0.0", "1.1.0", "1.2.0")
        # What a full disk did not take is on it, or forgotten, after the next start.
        self.board.start()


def test_whenever_the_disk_fills_up_the_old_or_the_new_version_serves(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = iter(lambda: tmp_path_factory.mktemp("board"), None)

    class Here(Disks):
        def __init__(self) -> None:
            super().__init__(world, next(made))

    run_state_machine_as_test(Here, settings=settings(max_examples=25, stateful_step_count=20))
