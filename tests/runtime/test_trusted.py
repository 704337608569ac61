"""A device asks its repository: what is signed is believed, and nothing else has any effect.

A hostile repository can delay an update, and can do nothing else: whatever it answers ends in a
reason code or in an error that may pass, and the honest repository is believed right after.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from edgekit.errors import LinkError
from edgekit.fleet.tuf import roles, rotate
from edgekit.fleet.tuf.publish import publish
from edgekit.messages import Wanted
from edgekit.signing import SigningKey
from edgekit_runtime.trusted import __main__ as child
from edgekit_runtime.trusted.repository import (
    LIMIT_BYTES,
    Cancelled,
    Repository,
    agree,
    outcome,
)
from edgekit_runtime.trusted.target import Request, Target, encode
from edgekit_runtime.update import Reason, UpdateFailed
from tests.clock import ManualClock
from tests.runtime.authority import Authority
from tests.runtime.hostile_repository import (
    DAY_S,
    Bent,
    Server,
    SignedFleet,
    cut_short,
    drips,
    drips_its_head,
    endless,
    role_of,
    says,
)

PATH = "tiny/1.0.0/generic-x86_64.edge"
SECOND = "tiny/1.1.0/generic-x86_64.edge"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet that has published one bundle; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    SignedFleet.make(folder).publish("1.0.0")
    return folder


@pytest.fixture
def signed(made: Path, tmp_path: Path) -> SignedFleet:
    return SignedFleet(Path(shutil.copytree(made, tmp_path / "work")))


@pytest.fixture
def server(signed: SignedFleet) -> Iterator[Server]:
    with Server(signed.fleet.repository) as running:
        yield running


def not_its_file(given: bytes, *, announced: Path) -> Reason:
    """The verdict on another file in the place of one: longer than announced, it is not read."""
    # Signatures differ in length by a byte or two, so it is one or the other by chance.
    is_longer = len(given) > announced.stat().st_size
    return Reason.REPOSITORY_REFUSED if is_longer else Reason.REPOSITORY_UNTRUSTED


class Device:
    """What a device keeps, and whom it asks: as the child does, here in this process.

    Where its alarm is going to ring a real child is needed: threads of engines that other tests
    left in this process may not bear a signal.
    """

    def __init__(self, signed: SignedFleet) -> None:
        self.root = signed.fleet.trust_root
        self.state = signed.work / "device"
        self.ca: Path | None = None

    def find(self, path: str, *servers: Server, limit_s: float = 20.0) -> Target:
        return outcome(child.answer(self.request(path, *servers, limit_s=limit_s)))

    def find_by_child(self, path: str, *servers: Server, limit_s: float = 20.0) -> Target:
        repository = Repository(
            urls=[server.url for server in servers],
            root=self.root,
            state=self.state,
            limit_s=limit_s,
        )
        return repository.find(path, cancelled=lambda: False)

    def request(self, path: str, *servers: Server, limit_s: float = 20.0) -> Request:
        return Request(
            path=path,
            urls=tuple(server.url for server in servers),
            root=self.root,
            state=self.state,
            ca=self.ca,
            limit_s=limit_s,
            limit_bytes=LIMIT_BYTES,
        )

    def refused(self, path: str, *servers: Server, limit_s: float = 20.0) -> Reason:
        with pytest.raises(UpdateFailed) as failure:
            self.find(path, *servers, limit_s=limit_s)
        return failure.value.reason


@pytest.fixture
def device(signed: SignedFleet) -> Device:
    return Device(signed)


def test_what_is_signed_is_found_with_all_that_a_fetch_needs(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    path = signed.bundle("1.0.0")

    target = device.find_by_child(PATH, server)

    assert target == device.find(PATH, server)
    assert target.path == PATH
    assert target.size_bytes == path.stat().st_size
    assert target.keys == (signed.release_key.public.pem.decode(),)
    assert not target.candidate
    assert target.clock_behind_s == 0
    found = signed.fleet.repository / target.urls[0].removeprefix(server.url)
    assert found.read_bytes() == path.read_bytes()


def test_a_second_look_fetches_the_timestamp_alone(server: Server, device: Device) -> None:
    device.find(PATH, server)
    server.asked.clear()

    device.find(PATH, server)

    assert server.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_the_daemons_process_never_loads_the_library() -> None:
    program = (
        "import sys, edgekit_runtime.trusted.repository\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tuf', 'securesystemslib')])"
    )

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert said.stdout == b"[]\n"


def test_what_was_never_published_is_not_there(server: Server, device: Device) -> None:
    assert device.refused("tiny/9.0.0/generic-x86_64.edge", server) is Reason.NOT_IN_REPOSITORY


@pytest.mark.parametrize("path", ["http://127.0.0.1/x.edge", "../../x", "a/b", "a/b/c/d/e", ""])
def test_what_is_no_path_of_a_bundle_is_refused_before_anybody_is_asked(
    server: Server, device: Device, path: str
) -> None:
    with pytest.raises(UpdateFailed) as failure:
        device.find_by_child(path, server)

    assert failure.value.reason is Reason.BAD_URL
    assert server.asked == []


def test_another_size_sha256_or_digest_than_announced_is_refused(
    server: Server, device: Device
) -> None:
    target = device.find(PATH, server)
    right = Wanted(
        version="1.0.0",
        digest=target.digest,
        url=PATH,
        sha256=target.sha256,
        size_bytes=target.size_bytes,
    )
    agree(target, right)

    for name, value in (("digest", "sha256:" + "0" * 64), ("sha256", "0" * 64), ("size_bytes", 7)):
        wrong = Wanted(**{**{n: getattr(right, n) for n in right.__struct_fields__}, name: value})
        with pytest.raises(UpdateFailed, match=name) as failure:
            agree(target, wrong)
        assert failure.value.reason is Reason.NOT_IN_REPOSITORY


def test_a_timestamp_by_another_key_is_refused(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    signed.sign_timestamp(by=signed.signer(signed.fleet.control_key))

    assert device.refused(PATH, server) is Reason.REPOSITORY_UNTRUSTED


def test_a_repository_of_another_fleet_is_refused(
    signed: SignedFleet, device: Device, tmp_path: Path
) -> None:
    other = SignedFleet.make(tmp_path / "other")
    other.publish("1.0.0")

    with Server(other.fleet.repository) as server:
        assert device.refused(PATH, server) is Reason.REPOSITORY_UNTRUSTED


@pytest.mark.parametrize("forgotten", ["nothing", "metadata", "timestamp.json"])
def test_an_older_state_is_refused_also_where_local_metadata_is_lost(
    signed: SignedFleet, server: Server, device: Device, forgotten: str
) -> None:
    old = signed.copy("old")
    signed.publish("1.1.0")
    device.find(SECOND, server)
    if forgotten == "metadata":
        shutil.rmtree(device.state / "metadata")
    elif forgotten != "nothing":
        (device.state / "metadata" / forgotten).write_bytes(b"")

    server.folder = old
    assert device.refused(PATH, server) is Reason.REPOSITORY_STALE

    server.folder = signed.fleet.repository
    assert device.find(SECOND, server).path == SECOND


def test_an_older_root_is_refused_where_local_metadata_is_lost(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    old = signed.copy("old")
    rotate.rotate(signed.fleet, ["root-1", "online"], clock=signed.clock)
    device.find(PATH, server)
    shutil.rmtree(device.state / "metadata")

    server.folder = old

    assert device.refused(PATH, server) is Reason.REPOSITORY_STALE


def test_a_repository_that_stands_still_is_refused_when_its_timestamp_expires(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    signed.at(ManualClock(now_ms=round((time.time() - 8 * DAY_S) * 1000)))
    signed.publish("1.1.0")

    assert device.refused(PATH, server) is Reason.REPOSITORY_STALE


def test_parts_of_two_states_are_not_one(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    old = signed.copy("old")
    signed.publish("1.1.0")
    new = signed.fleet.metadata
    older = max((old / "metadata").glob("*.snapshot.json"), key=lambda path: path.name)
    newer = max(new.glob("*.snapshot.json"), key=lambda path: path.name)
    server.bent = {f"metadata/{newer.name}": says(older.read_bytes())}

    assert device.refused(SECOND, server) is not_its_file(older.read_bytes(), announced=newer)

    server.bent = {}
    assert device.find(SECOND, server).path == SECOND


def test_one_bin_given_for_another_hides_a_bundle_only_while_it_is_given(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    snapshot = json.loads(max(signed.fleet.metadata.glob("*.snapshot.json")).read_bytes())
    meta = snapshot["signed"]["meta"]
    wanted = role_of(PATH)
    other = next(name for name in sorted(meta) if name.startswith("releases-") and name != wanted)
    names = [f"{meta[f'{role}.json']['version']}.{role}.json" for role in (wanted, other[:-5])]
    lie = (signed.fleet.metadata / names[1]).read_bytes()
    server.bent = {f"metadata/{names[0]}": says(lie)}

    assert device.refused(PATH, server) in (Reason.REPOSITORY_STALE, Reason.REPOSITORY_UNTRUSTED)

    server.bent = {}
    assert device.find(PATH, server).path == PATH


def test_a_snapshot_that_forgets_a_role_is_refused(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    device.find(PATH, server)
    signed.drop_from_snapshot(role_of(PATH))

    assert device.refused(PATH, server) is Reason.REPOSITORY_UNTRUSTED


def test_a_chain_of_delegations_is_followed_a_few_steps_only(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    key = signed.signer(signed.fleet.targets_key)
    with signed.editing() as editor:
        top = editor.read(roles.TARGETS)
        top.signed.delegations = _delegate(key.public_key, "deep-0")
        editor.change(roles.TARGETS, key)
        for depth in range(60):
            deeper = Targets(delegations=_delegate(key.public_key, f"deep-{depth + 1}"))
            signed.bring(editor, f"deep-{depth}", deeper, by=signed.fleet.targets_key)

    assert device.refused(PATH, server) is Reason.NOT_IN_REPOSITORY
    assert len([name for name in server.asked if "deep-" in name]) < 20


def _delegate(key: Key, name: str) -> Delegations:
    role = DelegatedRole(name, [key.keyid], 1, terminating=False, paths=["*/*/*"])
    return Delegations({key.keyid: key}, roles={name: role})


def test_candidates_are_told_from_releases(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    control = SigningKey.read(signed.fleet.control_key)
    path = signed.bundle("2.0.0", key=control)
    publish(signed.fleet, path, clock=signed.clock, candidate=True, deltas=False)

    target = device.find("candidates/tiny/2.0.0/generic-x86_64.edge", server)

    assert target.candidate
    assert target.keys == (control.public.pem.decode(),)


def test_the_coordinators_key_cannot_release(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    released = "tiny/2.0.0/generic-x86_64.edge"
    with signed.editing() as editor:
        key = signed.fleet.control_key
        signed.claim(editor, roles.CANDIDATES, released, like=PATH, by=key)

    assert device.refused(released, server) is Reason.NOT_IN_REPOSITORY


GARBAGE = {
    "nothing": b"",
    "not JSON": b"\x00\xff" * 200,
    "nested": b"[" * 15_000,
    "a list": b"[]",
    "no signatures": b'{"signed": {}, "signatures": []}',
    "odd numbers": b'{"signed": {"_type": "timestamp", "version": 1e999}, "signatures": [{}]}',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json"])
def test_garbage_is_refused(server: Server, device: Device, name: str, garbage: bytes) -> None:
    server.bent = {f"metadata/{name}": says(garbage)}

    assert device.refused(PATH, server) is Reason.REPOSITORY_UNTRUSTED

    server.bent = {}
    assert device.find(PATH, server).path == PATH


@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_metadata_with_a_changed_byte_is_never_believed(
    signed: SignedFleet, server: Server, device: Device, data: st.DataObject
) -> None:
    server.bent, device.state = {}, signed.work / "untouched"
    right = device.find(PATH, server)
    device.state = signed.work / "changed"
    shutil.rmtree(device.state, ignore_errors=True)
    server.asked.clear()
    device.find(PATH, server)
    names = [name for name in server.asked if (server.folder / name).is_file()]
    name = data.draw(st.sampled_from(sorted(set(names))))
    raw = bytearray((server.folder / name).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    shutil.rmtree(device.state)
    server.bent = {name: says(bytes(raw))}

    try:
        found = device.find(PATH, server)
    except UpdateFailed:
        return
    # A change that leaves the signed value as it was: JSON may be written in several ways.
    assert found == right


def test_metadata_without_end_is_refused(server: Server, device: Device) -> None:
    server.bent = {"metadata/timestamp.json": endless}

    with pytest.raises(UpdateFailed) as failure:
        device.find_by_child(PATH, server)
    assert failure.value.reason is Reason.REPOSITORY_REFUSED


PASSING: dict[str, Bent] = {
    "it drips": drips,
    "its head drips": drips_its_head,
    "it ends early": cut_short,
    "it is overloaded": says(b"later", status=503),
}


@pytest.mark.parametrize("bent", PASSING.values(), ids=PASSING.keys())
def test_what_may_pass_is_no_verdict(server: Server, device: Device, bent: Bent) -> None:
    server.bent = {"metadata/timestamp.json": bent}

    with pytest.raises(LinkError):
        device.find_by_child(PATH, server, limit_s=1.0)

    server.bent = {}
    assert device.find(PATH, server).path == PATH


def test_a_repository_that_is_not_there_may_come_back(server: Server, device: Device) -> None:
    gone = Server(server.folder)
    with gone:
        pass

    with pytest.raises(LinkError):
        device.find(PATH, gone)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 403, 404])
def test_redirects_and_errors_are_not_followed(server: Server, device: Device, status: int) -> None:
    elsewhere = "http://127.0.0.1:9/"
    server.bent = {"metadata/timestamp.json": says(b"", status=status, Location=elsewhere)}

    assert device.refused(PATH, server) is Reason.REPOSITORY_REFUSED


def test_a_mirror_is_asked_where_the_repository_lies_or_is_slow(
    server: Server, device: Device
) -> None:
    lies = {"*": says(b"{}")}
    slow: dict[str, Bent] = {"*": drips}
    for bent in (lies, slow):
        with Server(server.folder) as hostile:
            hostile.bent = bent
            target = device.find_by_child(PATH, hostile, server, limit_s=2.0)

            assert target.urls[1].startswith(server.url)
            assert target.urls[0].startswith(hostile.url)


def test_https_takes_the_fleets_own_authority_and_no_stranger(
    server: Server, device: Device, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    with Server(server.folder, tls=authority.issue("repository")) as secure:
        with pytest.raises(LinkError, match="certificate"):
            device.find(PATH, secure)

        device.ca = authority.certificate
        assert device.find(PATH, secure).path == PATH


def test_an_identity_that_lost_a_file_asks_for_enrolment(server: Server, device: Device) -> None:
    device.root = device.root.with_name("gone.json")

    with pytest.raises(UpdateFailed, match="enrol"):
        device.find(PATH, server)


def test_while_one_mirror_may_come_back_nothing_is_final(server: Server, device: Device) -> None:
    server.bent = {"*": says(b"{}")}
    with Server(server.folder) as down:
        down.bent = {"*": says(b"", status=500)}

        with pytest.raises(LinkError, match="answered 500"):
            device.find(PATH, server, down)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "emptied": lambda path: _replace(path, b""),
    "garbled": lambda path: _replace(path, b'{"signed":'),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: _make_folder(path),
}


def _replace(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_local_metadata_is_begun_anew(
    server: Server, device: Device, damage: Callable[[Path], None]
) -> None:
    device.find(PATH, server)
    metadata = device.state / "metadata"
    for path in [*metadata.rglob("*.json"), device.state / "proven.json"]:
        if path.is_file() and not path.is_symlink() and (damage is not DAMAGE["a folder"]):
            damage(path)
    if damage is DAMAGE["a folder"]:
        damage(metadata / "timestamp.json")

    assert device.find(PATH, server).path == PATH


def test_a_damaged_first_root_asks_for_enrolment(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    signed.fleet.trust_root.write_bytes(b"{}")

    with pytest.raises(UpdateFailed, match="enrol"):
        device.find(PATH, server)


def test_a_killed_child_leaves_metadata_that_the_next_can_use(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    for number in range(4):
        signed.publish(f"1.{number + 1}.0")
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit_runtime.trusted"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        process.stdin.write(encode(device.request(PATH, server)))
        process.stdin.close()
        seen = len(server.asked)
        while len(server.asked) < seen + 1 + 2 * number and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()

    assert device.find("tiny/1.4.0/generic-x86_64.edge", server).sha256


def test_asking_can_be_cancelled(server: Server, device: Device) -> None:
    server.bent = {"*": drips}
    asked = threading.Event()
    repository = Repository(urls=[server.url], root=device.root, state=device.state)

    def cancelled() -> bool:
        if server.asked:
            asked.set()
        return asked.is_set()

    with pytest.raises(Cancelled):
        repository.find(PATH, cancelled=cancelled)


def test_a_state_folder_that_cannot_be_written_says_so(server: Server, device: Device) -> None:
    device.state = Path("/sys/edgekit-trusted")

    assert device.refused(PATH, server) is Reason.READ_ONLY


def test_a_clock_that_is_a_year_behind_is_told_and_accepts_nothing_expired(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    # A repository that is a year ahead is, to the device, its own clock a year behind.
    signed.at(ManualClock(now_ms=round((time.time() + 365 * DAY_S) * 1000)))
    signed.publish("1.1.0")
    target = device.find(SECOND, server)
    assert target.clock_behind_s == pytest.approx(365 * DAY_S, abs=600)

    # Newer, and signed for a time that is over by what the device has proven to itself.
    signed.at(ManualClock(now_ms=round((time.time() + 350 * DAY_S) * 1000)))
    signed.publish("1.2.0")

    assert device.refused(SECOND, server) is Reason.REPOSITORY_STALE


def test_a_clock_that_is_a_year_ahead_is_named_as_the_reason(
    made: Path, signed: SignedFleet, tmp_path: Path
) -> None:
    a_year_ago = time.time() - 365 * DAY_S
    old = SignedFleet.make(tmp_path / "old", clock=ManualClock(now_ms=round(a_year_ago * 1000)))
    old.publish("1.0.0")
    device = Device(old)

    with Server(old.fleet.repository) as server:
        server.date = a_year_ago + DAY_S
        assert device.refused(PATH, server) is Reason.CLOCK_WRONG
        server.date = None
        assert device.refused(PATH, server) is Reason.REPOSITORY_STALE


def test_a_thief_of_the_online_key_cannot_lock_devices_out_for_ever(
    signed: SignedFleet, server: Server, device: Device
) -> None:
    now = signed.clock
    signed.at(ManualClock(now_ms=round((time.time() + 700 * DAY_S) * 1000)))
    signed.publish("1.1.0")
    device.find(SECOND, server)
    signed.at(now)
    signed.publish("1.2.0")
    assert device.refused(PATH, server) is Reason.REPOSITORY_STALE

    rotate.rotate(signed.fleet, ["online"], clock=now)

    assert device.find(PATH, server).path == PATH
