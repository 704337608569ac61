"""A fleet's signed repository: made, published to, signed again, its keys exchanged.

Who judges is a device's own client over a static server, as `tests/runtime/test_trusted` has it.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Targets

from edgekit import delta, released, storage
from edgekit.cli import cli
from edgekit.errors import FleetError, UntrustedError, UsageError
from edgekit.fleet import repository
from edgekit.fleet.store import Store, UnknownId
from edgekit.fleet.tuf import make, publish, refresh, roles, rotate
from edgekit.fleet.tuf.served import FleetRepository
from edgekit.signing import SigningKey
from edgekit_runtime.trusted import __main__ as child
from edgekit_runtime.trusted.repository import LIMIT_BYTES, Repository, outcome
from edgekit_runtime.trusted.target import Request, Target
from tests import bundles
from tests.clock import ManualClock
from tests.runtime.hostile_repository import DAY_S, Server, SignedFleet

PATH = "tiny/1.0.0/generic-x86_64.edge"
KILLS = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with an empty repository; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    SignedFleet.make(folder)
    return folder


@pytest.fixture
def signed(made: Path, tmp_path: Path) -> SignedFleet:
    return SignedFleet(Path(shutil.copytree(made, tmp_path / "work")))


@pytest.fixture
def server(signed: SignedFleet) -> Iterator[Server]:
    with Server(signed.fleet.repository) as running:
        yield running


def find(
    signed: SignedFleet, server: Server, path: str = PATH, *, device: str = "device"
) -> Target:
    """What a device finds."""
    request = Request(
        path=path,
        urls=(server.url,),
        root=signed.fleet.trust_root,
        state=signed.work / device,
        ca=None,
        limit_s=20.0,
        limit_bytes=LIMIT_BYTES,
    )
    return outcome(child.answer(request))


def test_a_repository_is_never_made_over_another(signed: SignedFleet) -> None:
    with pytest.raises(FleetError, match="already"):
        make(signed.fleet)


def test_making_needs_every_key(signed: SignedFleet) -> None:
    shutil.rmtree(signed.fleet.repository)
    signed.fleet.root_keys[1].unlink()

    with pytest.raises(FleetError, match=r"root-2\.key"):
        make(signed.fleet)


def test_the_same_bundle_is_published_once(signed: SignedFleet, server: Server) -> None:
    path = signed.bundle("1.0.0")
    first = publish.publish(signed.fleet, path, clock=signed.clock)
    again = publish.publish(signed.fleet, path, clock=signed.clock)

    assert (first.new, again.new) == (True, False)
    assert again.entry == first.entry
    assert find(signed, server).sha256 == first.entry.sha256


def test_another_bundle_of_the_same_version_is_refused(signed: SignedFleet) -> None:
    signed.publish("1.0.0")

    with pytest.raises(FleetError, match="published already"):
        signed.publish("1.0.0", seed=1)


def test_a_bundle_that_the_release_key_did_not_sign_is_refused(signed: SignedFleet) -> None:
    path = signed.bundle("1.0.0", key=SigningKey.generate())

    with pytest.raises(UntrustedError):
        publish.publish(signed.fleet, path, clock=signed.clock)
    assert not list(signed.fleet.targets.rglob("*.edge"))


def test_the_command_says_which_key_a_release_is_signed_with(signed: SignedFleet) -> None:
    path = signed.bundle("1.0.0", key=SigningKey.generate())

    told = CliRunner().invoke(cli, ["publish", str(path), "--fleet", str(signed.fleet.path)])

    assert isinstance(told.exception, UntrustedError)
    assert str(path) in told.exception.message
    assert f"--key {signed.fleet.release_key}" in str(told.exception.hint)


def test_the_release_key_may_be_kept_elsewhere(
    signed: SignedFleet, server: Server, tmp_path: Path
) -> None:
    bundle, folder = str(signed.bundle("1.0.0")), str(signed.fleet.path)
    stick = signed.fleet.release.rename(tmp_path / "stick")
    runner = CliRunner()

    without = runner.invoke(cli, ["publish", bundle, "--fleet", folder])
    found = runner.invoke(
        cli, ["publish", bundle, "--fleet", folder, "--release-key", str(stick / "release.key")]
    )

    assert isinstance(without.exception, FleetError)
    assert "--release-key" in str(without.exception.hint)
    assert "tiny 1.0.0 for generic-x86_64 published" in found.output
    assert find(signed, server).path == PATH
    assert not signed.fleet.release.exists()


def test_another_key_than_the_fleets_cannot_release_its_own_bundle(
    signed: SignedFleet, server: Server, tmp_path: Path
) -> None:
    signed.publish("1.0.0")
    key = SigningKey.generate()
    storage.write(tmp_path / "other.key", key.pem(), mode=0o600)

    with pytest.raises(FleetError, match="not the key that signs releases"):
        publish.publish(
            signed.fleet,
            signed.bundle("2.0.0", key=key),
            clock=signed.clock,
            release_key=tmp_path / "other.key",
        )

    assert find(signed, server).path == PATH
    assert not list(signed.fleet.targets.rglob("*2.0.0*"))


def test_deltas_come_from_the_three_versions_before_and_rebuild_the_bundle(
    signed: SignedFleet, server: Server
) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0", "1.10.0"):
        base = signed.bundle(version)
        publish.publish(signed.fleet, base, clock=signed.clock)
    new = signed.bundle("1.11.0")
    publish.publish(signed.fleet, new, clock=signed.clock)

    target = find(signed, server, "tiny/1.11.0/generic-x86_64.edge")

    olds = [
        find(signed, server, f"tiny/{old}/generic-x86_64.edge")
        for old in ("1.10.0", "1.2.0", "1.1.0")
    ]
    assert [item.base for item in target.deltas] == [old.digest for old in olds]
    first = target.deltas[0]
    assert first.size_bytes < 0.1 * target.size_bytes
    patch = signed.fleet.repository / first.urls[0].removeprefix(server.url)
    rebuilt = signed.work / "rebuilt.edge"
    delta.apply(
        base,
        patch,
        rebuilt,
        wanted_sha256=target.sha256,
        wanted_size_bytes=target.size_bytes,
    )
    assert rebuilt.read_bytes() == new.read_bytes()


def test_a_delta_that_saves_little_is_not_kept(signed: SignedFleet, server: Server) -> None:
    for seed, version in enumerate(("1.0.0", "1.1.0")):
        path = bundles.write(
            signed.work, version=version, key=signed.release_key, large=True, seed=seed
        )
        publish.publish(signed.fleet, path, clock=signed.clock)

    assert find(signed, server, "tiny/1.1.0/generic-x86_64.edge").deltas == ()
    assert not list(signed.fleet.targets.rglob("*.delta"))


def test_a_plain_web_server_can_hold_it(signed: SignedFleet, tmp_path: Path) -> None:
    signed.publish("1.0.0")
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=signed.fleet.repository, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline().decode()
        port = said.split(" port ")[1].split()[0]
        repository_ = Repository(
            urls=[f"http://127.0.0.1:{port}/"],
            root=signed.fleet.trust_root,
            state=tmp_path / "device",
        )
        try:
            assert repository_.find(PATH, cancelled=lambda: False).path == PATH
        finally:
            process.kill()


def test_readers_never_see_a_state_that_does_not_fit_together(
    signed: SignedFleet, server: Server
) -> None:
    signed.publish("1.0.0")
    paths = [signed.bundle(f"2.{number}.0") for number in range(6)]
    done = threading.Event()

    def write() -> None:
        for path in paths:
            publish.publish(signed.fleet, path, clock=signed.clock, deltas=False)
        refresh.refresh(signed.fleet, clock=signed.clock, every=True)
        rotate.rotate(signed.fleet, ["online", "targets", "release"], clock=signed.clock)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set() or reads < 3:
        assert find(signed, server, device=f"device-{reads % 3}").path == PATH
        reads += 1
    writer.join()


CHANGES = {
    "publish": "publish.publish(fleet, pathlib.Path(sys.argv[2]), clock=clock, deltas=False)",
    "refresh": "refresh.refresh(fleet, clock=clock, every=True)",
    "rotate": "rotate.rotate(fleet, ['root-3', 'targets', 'online', 'release'], clock=clock)",
}


def test_a_rotation_without_the_offline_keys_is_refused_and_makes_none(
    signed: SignedFleet, tmp_path: Path
) -> None:
    fleet = signed.fleet
    fleet.offline.rename(tmp_path / "elsewhere")

    with pytest.raises(FleetError, match="root"):
        rotate.rotate(fleet, ["root-1"], clock=signed.clock)
    with pytest.raises(FleetError, match="must sign"):
        rotate.rotate(fleet, ["online"], clock=signed.clock)

    assert not fleet.offline.exists()
    assert not list(fleet.coordinator.glob("*-next.key"))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_that_is_killed_leaves_the_old_state_or_the_new(
    signed: SignedFleet, server: Server, change: str
) -> None:
    signed.publish("1.0.0")
    find(signed, server)
    program = (
        "import pathlib, sys\n"
        "from edgekit.clock import SystemClock\n"
        "from edgekit.fleet.folder import FleetFolder\n"
        "from edgekit.fleet.tuf import publish, refresh, rotate\n"
        "fleet, clock = FleetFolder(pathlib.Path(sys.argv[1])), SystemClock()\n"
        "print('ready', flush=True)\n"
        f"{change}\n"
    )
    for number in range(KILLS):
        path = signed.bundle(f"1.{number + 1}.0")
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(signed.fleet.path), str(path)],
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.02 * number)
            process.send_signal(signal.SIGKILL)

        assert find(signed, server).path == PATH

    release = signed.release_key
    last = bundles.write(signed.work, version="3.0.0", key=release)
    # A release key that was exchanged counts when the next change has put it in its place.
    refresh.refresh(signed.fleet, clock=signed.clock)
    if signed.release_key.public.id != release.public.id:
        last = bundles.write(signed.work, version="3.0.0", key=signed.release_key)
    publish.publish(signed.fleet, last, clock=signed.clock)
    assert find(signed, server, "tiny/3.0.0/generic-x86_64.edge").keys == (
        signed.release_key.public.pem.decode(),
    )
    assert not list(signed.fleet.repository.rglob("*.tmp"))


def test_nothing_is_signed_again_before_it_is_due(signed: SignedFleet) -> None:
    assert refresh.refresh(signed.fleet, clock=signed.clock).signed == ()


@pytest.mark.parametrize(
    ("days", "due"),
    [
        (4, {roles.TIMESTAMP}),
        (16, {roles.TIMESTAMP, roles.SNAPSHOT}),
        (200, {roles.TIMESTAMP, roles.SNAPSHOT, roles.CANDIDATES}),
    ],
)
def test_what_the_coordinator_can_sign_is_signed_in_time(
    signed: SignedFleet, days: int, due: set[str]
) -> None:
    for path in (signed.fleet.offline, signed.fleet.release):
        shutil.rmtree(path)
    later = ManualClock(now_ms=round((time.time() + days * DAY_S) * 1000))

    done = refresh.refresh(signed.fleet, clock=later)

    assert set(done.signed) == due
    assert done.waiting == {}


def test_what_waits_for_an_offline_key_is_named(signed: SignedFleet) -> None:
    shutil.rmtree(signed.fleet.offline)
    later = ManualClock(now_ms=round((time.time() + 4 * 365 * DAY_S) * 1000))

    done = refresh.refresh(signed.fleet, clock=later)

    assert set(done.waiting) == {roles.ROOT, roles.TARGETS}
    assert roles.RELEASES in done.signed


def test_everything_that_expired_can_be_signed_again(signed: SignedFleet, server: Server) -> None:
    signed.publish("1.0.0")
    years_later = ManualClock(now_ms=round((time.time() - 10 * 365 * DAY_S) * 1000))
    refresh.refresh(signed.fleet, clock=years_later, every=True)

    refresh.refresh(signed.fleet, clock=signed.clock)

    assert find(signed, server).path == PATH


@pytest.mark.parametrize("name", ["root-1", "root-2", "root-3", "targets", "online", "release"])
def test_devices_follow_an_exchanged_key(signed: SignedFleet, server: Server, name: str) -> None:
    signed.publish("1.0.0")
    find(signed, server)
    key = rotate.names(signed.fleet)[name]
    before = key.read_bytes()

    assert rotate.rotate(signed.fleet, [name], clock=signed.clock) == 2

    assert key.read_bytes() != before
    assert not rotate.next_file(key).exists()
    signed.publish("1.1.0")
    assert find(signed, server, "tiny/1.1.0/generic-x86_64.edge").path
    assert find(signed, server, device="a new device").path == PATH


def test_a_device_that_slept_through_every_exchange_follows(
    signed: SignedFleet, server: Server
) -> None:
    signed.publish("1.0.0")
    find(signed, server)
    for name in ("root-1", "root-2", "root-3", "online", "targets", "release"):
        rotate.rotate(signed.fleet, [name], clock=signed.clock)

    assert find(signed, server).path == PATH


def test_one_root_key_cannot_make_a_root(signed: SignedFleet, server: Server) -> None:
    signed.publish("1.0.0")
    for path in signed.fleet.root_keys[:2]:
        path.unlink()

    with pytest.raises(FleetError, match="must sign"):
        rotate.rotate(signed.fleet, ["online"], clock=signed.clock)
    assert find(signed, server).path == PATH


def test_a_root_key_that_was_lost_is_replaced(signed: SignedFleet, server: Server) -> None:
    signed.publish("1.0.0")
    signed.fleet.root_keys[1].unlink()

    rotate.rotate(signed.fleet, ["root-2"], clock=signed.clock)
    # The new key is one of two that make the next root.
    signed.fleet.root_keys[0].unlink()
    rotate.rotate(signed.fleet, ["root-1"], clock=signed.clock)

    assert find(signed, server).path == PATH


def test_a_key_that_is_not_there_is_a_usage_error(signed: SignedFleet) -> None:
    with pytest.raises(UsageError, match="candidates"):
        rotate.rotate(signed.fleet, ["candidates"], clock=signed.clock)


def test_no_two_files_of_targets_metadata_share_a_version(signed: SignedFleet) -> None:
    signed.publish("1.0.0")
    rotate.rotate(signed.fleet, ["release"], clock=signed.clock)
    signed.publish("1.1.0")

    versions = [
        Metadata[Targets].from_file(str(path)).signed.version
        for path in signed.fleet.metadata.glob("*.json")
        if path.name.split(".")[-2] not in (roles.ROOT, roles.SNAPSHOT, roles.TIMESTAMP)
    ]
    assert len(set(versions)) == len(versions) > 2 * 2**roles.BIN_BITS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.in_folder(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def coordinators(signed: SignedFleet, store: Store) -> FleetRepository:
    """A coordinator's view of the repository."""
    work = signed.work / "receiving"
    return FleetRepository(store=store, fleet=signed.fleet, work=work, clock=signed.clock)


def rows(store: Store) -> list[repository.Published]:
    with store.read() as connection:
        return repository.every(connection)


def test_a_coordinator_notices_what_was_published_past_it(
    signed: SignedFleet, store: Store, coordinators: FleetRepository
) -> None:
    coordinators.look_after()
    assert rows(store) == []

    added = signed.publish("1.0.0")
    coordinators.look_after()

    (row,) = rows(store)
    assert row.wanted().url == row.target == PATH
    assert row.wanted().sha256 == added.entry.sha256
    assert row.digest == added.entry.custom.digest
    assert coordinators.file(f"{row.file_sha256}.edge").is_file()


def test_a_coordinator_publishes_candidates_and_a_release_takes_their_place(
    signed: SignedFleet, store: Store, coordinators: FleetRepository, server: Server
) -> None:
    control = SigningKey.read(signed.fleet.control_key)
    candidate = coordinators.publish_copy(signed.bundle("2.0.0", key=control))
    assert candidate.wanted().url == "candidates/tiny/2.0.0/generic-x86_64.edge"
    assert find(signed, server, candidate.target).candidate

    signed.publish("2.0.0")
    coordinators.notice()

    (row,) = rows(store)
    assert row.target == "tiny/2.0.0/generic-x86_64.edge"
    assert row.digest == candidate.digest


def test_a_coordinator_cannot_release(signed: SignedFleet, coordinators: FleetRepository) -> None:
    received = coordinators.incoming()
    shutil.copyfile(signed.bundle("1.0.0"), received)

    with pytest.raises(FleetError, match="release key"):
        coordinators.publish(received)
    assert not received.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../fleet.json",
        "metadata/../../coordinator/online.key",
        "targets/.hidden",
        "metadata",
        "fleet.json",
        "metadata/9.root.json",
        "",
        "/etc/passwd",
        "metadata//timestamp.json",
    ],
)
def test_a_coordinator_serves_the_repository_and_nothing_beside_it(
    signed: SignedFleet, coordinators: FleetRepository, name: str
) -> None:
    assert coordinators.served("metadata/timestamp.json").is_file()

    with pytest.raises(UnknownId):
        coordinators.served(name)


def test_a_damaged_repository_does_not_stop_a_coordinator(
    signed: SignedFleet, coordinators: FleetRepository, caplog: pytest.LogCaptureFixture
) -> None:
    (signed.fleet.metadata / "timestamp.json").write_bytes(b"{}")

    coordinators.look_after()

    assert "needs an operator" in caplog.text


def test_the_commands_publish_sign_again_and_exchange(signed: SignedFleet, server: Server) -> None:
    runner, folder = CliRunner(), str(signed.fleet.path)

    published = runner.invoke(cli, ["publish", str(signed.bundle("1.0.0")), "--fleet", folder])
    signed_again = runner.invoke(cli, ["fleet", "refresh", folder, "--all", "--json"])
    rotated = runner.invoke(cli, ["fleet", "rotate-root", folder, "--replace", "root-2"])

    assert "tiny 1.0.0 for generic-x86_64 published" in published.output
    assert '"timestamp"' in signed_again.output
    assert rotated.output == "root 3 is signed, with a new key for root-2\n"
    assert find(signed, server).path == PATH


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


@given(names, st.sampled_from(["1.0.0", "1.2.3-rc.1+build.5"]), names, st.booleans())
def test_a_path_tells_name_version_and_profile(
    name: str, version: str, profile: str, candidate: bool
) -> None:
    path = released.bundle_path(name=name, version=version, profile=profile, candidate=candidate)

    assert released.parts(path) == (name, version, profile)
    assert released.check_path(path) == path
    stored = released.stored(path, "0" * 64)
    assert stored.startswith("targets/")
    assert stored.endswith(f"/{'0' * 64}.{profile}.edge")


@given(st.text(max_size=30))
def test_what_is_no_path_of_a_bundle_is_refused(text: str) -> None:
    try:
        checked = released.check_path(text)
    except FleetError:
        return
    assert ".." not in checked.split("/")
    assert checked.count("/") in (2, 3)
