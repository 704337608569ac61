"""Enrolment and renewal: who gets a certificate, who does not, and what a bad wire can do."""

from __future__ import annotations

import json
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import enrolment, envelope
from edgekit.enrolment import Ask, RenewalAsk, RenewalRequest, Sealed, Token
from edgekit.errors import (
    EdgekitError,
    FleetError,
    LinkError,
    MessageError,
    UntrustedError,
    UsageError,
)
from edgekit.fleet.enrolment import MOST_VALID
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.members import Issued, Members
from edgekit.fleet.tuf.rotate import rotate
from edgekit.signing import SigningKey
from edgekit_converters.demo.processes import free_port
from edgekit_runtime.device import device
from edgekit_runtime.identity import Identity
from edgekit_runtime.identity.enrol import enroll, opened
from edgekit_runtime.identity.renewal import renew
from tests.fleet.enrolling import DAY_S, Enrolling, enrolling
from tests.fleet.identities import Peer
from tests.fleet.processes import Process, edgekit, until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enrolling]:
    with enrolling(tmp_path_factory.mktemp("office") / "fleet") as made:
        yield made


@pytest.fixture
def office(shared: Enrolling) -> Iterator[Enrolling]:
    yield shared
    shared.wire.lose = 0
    shared.wire.change = lambda body: body
    shared.wire.heard.clear()


def get_in(office: Enrolling, token: Token, folder: Path, *, name: str | None = None) -> Identity:
    return enroll(folder, token, coordinator=office.url, name=name, clock=office.clock)


def test_a_token_gets_a_device_a_certificate_and_what_it_trusts(
    office: Enrolling, tmp_path: Path
) -> None:
    folder = tmp_path / "identity"

    identity = get_in(office, office.token("cam"), folder, name="berlin/cam")

    assert identity.name == "berlin/cam"
    assert "berlin/cam" in office.names()
    assert stat.S_IMODE((folder / "device.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert identity.root.read_bytes() == office.folder.trust_root.read_bytes()
    control = SigningKey.read(office.folder.control_key).public
    assert [key.id for key in identity.control_keys] == [control.id]


def test_who_enrols_after_an_exchange_of_keys_trusts_the_new_one_alone(tmp_path: Path) -> None:
    with enrolling(tmp_path / "fleet") as office:
        before = get_in(office, office.token("a"), tmp_path / "a", name="berlin/a")
        rotate(office.folder, ["release"], clock=office.clock)
        after = get_in(office, office.token("b"), tmp_path / "b", name="berlin/b")

        (new,) = [key.id for key in after.release_keys]
        assert new == SigningKey.read(office.folder.release_key).public.id
        assert new != before.release_keys[0].id
        assert after.root.read_bytes() == office.folder.trust_root.read_bytes()


def test_neither_key_nor_secret_travels(office: Enrolling, tmp_path: Path) -> None:
    token = office.token("quiet")

    get_in(office, token, tmp_path / "identity")

    said = b"".join(office.wire.heard)
    assert token.id.encode() in said
    assert token.text.split(".")[1].encode() not in said
    assert b"PRIVATE KEY" not in said
    assert msgspec.json.encode(token.secret) not in said


def test_a_token_is_used_once_but_a_lost_answer_is_asked_for_again(
    office: Enrolling, tmp_path: Path
) -> None:
    token = office.token("once")
    office.wire.lose = 1
    with pytest.raises(LinkError):
        get_in(office, token, tmp_path / "a" / "identity")

    first = get_in(office, token, tmp_path / "a" / "identity")

    issued = [member for member in office.members.every() if member.device == "once"]
    assert [member.generation for member in issued] == [1]
    with pytest.raises(FleetError, match="used already"):
        get_in(office, token, tmp_path / "b" / "identity")
    assert Identity.read(tmp_path / "a" / "identity").client_id == first.client_id


def test_an_expired_token_is_refused(office: Enrolling, tmp_path: Path) -> None:
    token = office.token("late", hours=1)
    office.clock.advance(2 * 3600)

    with pytest.raises(FleetError, match="expired"):
        get_in(office, token, tmp_path / "identity")

    assert "berlin/late" not in office.names()


def test_a_token_of_another_device_is_refused_and_stays_unused(
    office: Enrolling, tmp_path: Path
) -> None:
    token = office.token("right")

    with pytest.raises(FleetError, match=r"for berlin/right, and berlin/wrong asks"):
        get_in(office, token, tmp_path / "wrong", name="berlin/wrong")

    assert get_in(office, token, tmp_path / "right", name="berlin/right").device == "right"


def test_a_secret_that_was_guessed_gets_nothing(office: Enrolling, tmp_path: Path) -> None:
    token = office.token("guessed")

    for guess in (Token(token.id, bytes(32)), Token.new()):
        with pytest.raises(FleetError, match=r"not sealed with the secret|not known here"):
            get_in(office, guess, tmp_path / "identity")

    assert not (tmp_path / "identity").exists()


def test_an_answer_that_was_changed_is_not_believed(office: Enrolling, tmp_path: Path) -> None:
    token, other = office.token("victim"), office.token("attacker")

    def swap_ca(raw: bytes) -> bytes:
        """What a man in the middle can do: a whole answer of his own, for a token of his own."""
        sealed = enrolment.decode(raw, Sealed, limit_bytes=1 << 20)
        answer = msgspec.json.decode(sealed.body)
        answer["control"] = SigningKey.generate().public.pem.decode()
        forged = enrolment.answer(other, msgspec.json.encode(answer))
        return msgspec.json.encode(msgspec.structs.replace(forged, token=token.id))

    office.wire.change = swap_ca
    with pytest.raises(UntrustedError, match="not sealed with the secret"):
        get_in(office, token, tmp_path / "identity")
    assert not (tmp_path / "identity").exists()

    office.wire.change = lambda raw: raw
    assert get_in(office, token, tmp_path / "identity").device == "victim"


def test_an_answer_to_another_question_is_not_believed(office: Enrolling, tmp_path: Path) -> None:
    token = office.token("replayed")
    answers: list[bytes] = []

    def keep(raw: bytes) -> bytes:
        answers.append(raw)
        return b"lost"

    office.wire.change = keep
    with pytest.raises(MessageError):
        get_in(office, token, tmp_path / "identity")
    office.wire.change = lambda _: answers[0]

    # The same key asks, in a request that is signed anew.
    with pytest.raises(UntrustedError, match="another question"):
        get_in(office, token, tmp_path / "identity")


@pytest.fixture(scope="module")
def exchange(shared: Enrolling) -> tuple[Token, bytes, bytes]:
    """A token, what was asked with it, and the answer."""
    token = shared.token("fuzzed")
    body = msgspec.json.encode(Ask(csr=enrolment.request_for(SigningKey.generate())))
    return token, body, shared.office.enroll(msgspec.json.encode(enrolment.ask(token, body)))


@given(place=st.integers(0, 1 << 20), change=st.integers(1, 255))
def test_no_changed_byte_of_an_answer_is_believed(
    exchange: tuple[Token, bytes, bytes], place: int, change: int
) -> None:
    token, body, raw = exchange
    changed = bytearray(raw)
    changed[place % len(raw)] ^= change

    try:
        found = opened(bytes(changed), token, body)
    except (MessageError, UntrustedError):
        return
    assert found == opened(raw, token, body)  # a bit of base64 that means nothing


def test_enrolling_a_name_anew_takes_the_old_certificates_rights(
    office: Enrolling, tmp_path: Path
) -> None:
    first = get_in(office, office.token("anew"), tmp_path / "a" / "identity")
    get_in(office, office.token("anew"), tmp_path / "b" / "identity")

    with pytest.raises(FleetError, match="enrolled anew"):
        renew(first, clock=office.clock)


def test_a_certificate_is_renewed_for_a_new_key(office: Enrolling, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    before = get_in(office, office.token("renewed"), folder)
    key = (folder / "device.key").read_bytes()
    office.clock.advance(50 * DAY_S)

    renew(before, clock=office.clock)

    after = Identity.read(folder)
    assert after.expires_at_ms > before.expires_at_ms
    assert (folder / "device.key").read_bytes() != key
    assert after.name == before.name


def test_a_lost_renewal_is_asked_for_again_for_the_same_key(
    office: Enrolling, tmp_path: Path
) -> None:
    folder = tmp_path / "identity"
    identity = get_in(office, office.token("patient"), folder)
    office.clock.advance(50 * DAY_S)
    office.wire.lose = 1
    with pytest.raises(LinkError):
        renew(identity, clock=office.clock)
    pending = next(tmp_path.glob(".identity.pending-*")).read_bytes()

    renew(identity, clock=office.clock)

    assert (folder / "device.key").read_bytes() == pending
    assert not list(tmp_path.glob(".identity.pending-*"))


def test_a_renewal_is_refused_before_half_of_the_lifetime(
    office: Enrolling, tmp_path: Path
) -> None:
    identity = get_in(office, office.token("eager"), tmp_path / "identity")
    office.clock.advance(44 * DAY_S)
    with pytest.raises(FleetError, match="too early to renew it"):
        renew(identity, clock=office.clock)
    assert office.held("eager") == 1

    office.clock.advance(2 * DAY_S)
    renew(identity, clock=office.clock)

    with pytest.raises(FleetError, match="too early to renew it"):
        renew(Identity.read(tmp_path / "identity"), clock=office.clock)
    assert office.held("eager") == 2


def test_a_device_holds_no_more_valid_certificates_than_it_may(
    office: Enrolling, tmp_path: Path
) -> None:
    folder = tmp_path / "identity"
    identity = get_in(office, office.token("greedy"), folder)
    office.clock.advance(50 * DAY_S)

    for _ in range(MOST_VALID - 1):
        ask(office, folder, SigningKey.generate())
    with pytest.raises(FleetError, match="may have no more"):
        ask(office, folder, SigningKey.generate())

    assert office.held("greedy") == MOST_VALID
    assert Identity.read(folder).client_id == identity.client_id


def test_the_key_that_waits_gets_its_certificate_however_often_it_asks(
    office: Enrolling, tmp_path: Path
) -> None:
    folder, key = tmp_path / "identity", SigningKey.generate()
    get_in(office, office.token("steady"), folder)
    office.clock.advance(50 * DAY_S)

    assert len({ask(office, folder, key) for _ in range(5)}) == 1
    assert office.held("steady") == 2


def ask(office: Enrolling, folder: Path, key: SigningKey) -> bytes:
    """Ask for a certificate for a key, with what a device has; the answer."""
    question = RenewalAsk(csr=enrolment.request_for(key))
    request = RenewalRequest(
        certificate=(folder / "device.crt").read_text(),
        envelope=envelope.sign(
            msgspec.json.encode(question),
            kind=enrolment.RENEWAL,
            key=SigningKey.read(folder / "device.key"),
        ),
    )
    return office.office.renew(msgspec.json.encode(request))


def test_what_expired_leaves_the_revocation_list_and_at_last_the_record(tmp_path: Path) -> None:
    day_ms = round(DAY_S * 1000)
    members = Members(tmp_path / "devices.sqlite")
    with members.change() as change:
        for number, expires_ms in enumerate((90 * day_ms, 140 * day_ms), start=1):
            subject = change.enrol("berlin", "cam", now_ms=0)
            issued = Issued(number, f"key {number}", b"pem", 0, expires_ms)
            change.add_certificate(subject, issued)
        change.revoke("berlin", "cam", now_ms=day_ms)

    def listed(day: int) -> list[int]:
        now_ms = day * day_ms
        with members.change() as change:
            change.forget_certificates(now_ms=now_ms)
        return [one.serial for one in members.revoked(now_ms=now_ms)]

    assert listed(90) == [1, 2]
    assert listed(92) == [2]
    assert listed(121) == [2]
    with members.change() as change:
        assert [one.serial for one in change.revoked(now_ms=0)] == [2]
    assert listed(500) == []
    # Of a device that is long gone, the last is kept: the list of members tells of it.
    (member,) = members.every()
    assert (member.generation, member.revoked_ms) == (2, day_ms)
    assert member.expires_ms == 140 * day_ms


def test_an_expired_certificate_is_not_renewed(office: Enrolling, tmp_path: Path) -> None:
    identity = get_in(office, office.token("asleep"), tmp_path / "identity")
    office.clock.advance(91 * DAY_S)

    with pytest.raises(FleetError, match="expired"):
        renew(identity, clock=office.clock)


def test_a_revoked_device_gets_nothing_more(office: Enrolling, tmp_path: Path) -> None:
    identity = get_in(office, office.token("out"), tmp_path / "identity")
    spare = office.token("out")
    with office.members.change() as change:
        change.revoke("berlin", "out", now_ms=office.clock.now_ms())

    with pytest.raises(FleetError, match="revoked"):
        renew(identity, clock=office.clock)
    with pytest.raises(FleetError, match="not known here"):
        get_in(office, spare, tmp_path / "other")


def test_a_renewal_signed_by_another_key_is_refused(office: Enrolling, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    identity = get_in(office, office.token("robbed"), folder)
    (folder / "device.key").chmod(0o600)
    (folder / "device.key").write_bytes(SigningKey.generate().pem())

    with pytest.raises(FleetError, match="renewal: signed by key"):
        renew(identity, clock=office.clock)


@settings(max_examples=100)
@given(raw=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_whatever_is_sent_is_answered_with_an_error(shared: Enrolling, raw: bytes) -> None:
    for answer in (shared.office.enroll, shared.office.renew):
        with pytest.raises(EdgekitError):
            answer(raw)


def test_the_commands_carry_a_device_from_init_to_revocation(tmp_path: Path) -> None:
    """`fleet init`, `broker`, `coordinator`, `fleet token`, `device enroll`, `fleet revoke`."""
    port, folder = free_port(), tmp_path / "fleet"
    public = f"http://127.0.0.1:{free_port()}"
    made = edgekit(
        *("fleet", "init", str(folder), "--site", "berlin", "--json"),
        *("--broker", f"mqtts://127.0.0.1:{port}"),
        *("--repository", f"{public}/repository/", "--coordinator", public),
    )
    assert made.returncode == 0, made.stderr
    again = edgekit(
        *("fleet", "init", str(folder), "--site", "berlin"),
        *("--broker", f"mqtts://127.0.0.1:{port}"),
        *("--repository", f"{public}/repository/", "--coordinator", public),
    )
    assert again.returncode == 8
    assert "holds a fleet already" in again.stderr
    broker = Process(
        *("broker", "--fleet", str(folder), "--listen", f"127.0.0.1:{port}"),
        *("--state", str(tmp_path / "broker")),
        log=tmp_path / "broker.log",
    )
    coordinator = Process(
        *("coordinator", "--fleet", str(folder), "--listen", "127.0.0.1:0"),
        *("--devices", public.removeprefix("http://"), "--state", str(tmp_path / "coordinator")),
        log=tmp_path / "coordinator.log",
    )
    try:
        tokens = edgekit(
            *("fleet", "token", str(folder), "berlin/cam", "--count", "2"),
            *("--out", str(tmp_path / "tokens"), "--json"),
        )
        files = [entry["file"] for entry in json.loads(tokens.stdout)["tokens"]]
        assert [Path(file).name for file in files] == ["berlin_cam-1.token", "berlin_cam-2.token"]
        enrolled = edgekit(
            *("device", "enroll", "--token-file", files[0], "--coordinator", public),
            *("--state", str(tmp_path / "device"), "--json"),
        )
        assert enrolled.returncode == 0, enrolled.stderr
        identity = Identity.read(tmp_path / "device" / "identity")
        assert json.loads(enrolled.stdout)["device"] == identity.name == "berlin/cam-1"

        second = edgekit(
            *("coordinator", "--fleet", str(folder), "--listen", "127.0.0.1:0"),
            *("--state", str(tmp_path / "second")),
        )
        assert second.returncode == 7
        assert "a fleet has one coordinator" in second.stderr

        for path, status in (("/repository/metadata/1.root.json", 200), ("/api/overview", 404)):
            assert _status(f"{public}{path}") == status

        peer = Peer(port, identity.tls, client_id=identity.client_id)
        until(lambda: peer.link.connected)
        revoked = edgekit("fleet", "revoke", "berlin/cam-1", "--fleet", str(folder), "--json")
        assert json.loads(revoked.stdout)["session"] == "refused"
        until(lambda: not peer.link.connected)
        assert peer.refused()
        peer.close()
        listed = edgekit("fleet", "members", str(folder))
        assert "berlin/cam-1  enrolled 1x, revoked" in listed.stdout
    finally:
        coordinator.stop()
        broker.stop()


def test_no_two_devices_share_a_tokens_file_and_none_is_replaced(tmp_path: Path) -> None:
    folder, out = str(tmp_path / "fleet"), tmp_path / "tokens"
    made = edgekit(
        *("fleet", "init", folder, "--site", "a", "--site", "a-b", "--broker", "mqtts://a:1"),
        *("--repository", "http://a/", "--coordinator", "http://a"),
    )
    assert made.returncode == 0, made.stderr

    told = edgekit("fleet", "token", folder, "a-b/c", "a/b-c", "--out", str(out), "--json")

    tokens = json.loads(told.stdout)["tokens"]
    assert len({Path(entry["file"]).read_text() for entry in tokens}) == 2
    before = {path: path.read_text() for path in out.iterdir()}
    record = Members(FleetFolder(tmp_path / "fleet").members)
    version = record.version()
    again = edgekit("fleet", "token", folder, "a/new", "a/b-c", "--out", str(out))
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert {path: path.read_text() for path in out.iterdir()} == before
    assert record.version() == version


def test_members_are_told_by_the_names_of_their_fields(office: Enrolling, tmp_path: Path) -> None:
    get_in(office, office.token("listed"), tmp_path / "identity")

    told = edgekit("fleet", "members", str(office.folder.path), "--json")

    (member,) = [one for one in json.loads(told.stdout)["members"] if one["device"] == "listed"]
    assert (member["site"], member["generation"]) == ("berlin", 1)
    assert member["revoked_ms"] is None
    assert member["expires_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("berlin/cam", "--hours", "nan"), "nan"),
        (("berlin/CAM 1",), "cannot be the id of a device"),
        (("BERLIN/cam",), "cannot be the id of a site"),
        (("cam",), "is not SITE/DEVICE"),
    ],
)
def test_a_token_for_no_device_is_a_usage_error(
    office: Enrolling, arguments: tuple[str, ...], said: str
) -> None:
    told = edgekit("fleet", "token", str(office.folder.path), *arguments)

    assert (told.returncode, said in told.stderr) == (2, True)


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        with e:
            return e.code


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "this is not an enrolment token"),
        (b"\xc6\x00 binary", "this is not an enrolment token"),
    ],
)
def test_a_token_file_that_holds_none_is_named(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "cam.token"
    if content is not None:
        file.write_bytes(content)
    options = ["--token-file", str(file), "--coordinator", "http://127.0.0.1:9"]
    told = CliRunner().invoke(device, ["enroll", *options, "--state", str(tmp_path / "state")])

    assert isinstance(told.exception, UsageError)
    assert str(file) in told.exception.message
    assert words in told.exception.message
    assert not (tmp_path / "state").exists()


def test_a_folder_that_is_half_a_fleet_is_told(tmp_path: Path) -> None:
    (tmp_path / "offline").mkdir()

    made = edgekit(
        *("fleet", "init", str(tmp_path), "--site", "berlin", "--broker", "mqtts://a:1"),
        *("--repository", "http://a/", "--coordinator", "http://a"),
    )

    assert made.returncode == 8
    assert "it holds offline" in made.stderr
    assert not (tmp_path / "fleet.json").exists()


def test_two_at_once_use_a_token_once(office: Enrolling) -> None:
    token = office.token("race")

    def attempt(_: int) -> bool:
        body = msgspec.json.encode(Ask(csr=enrolment.request_for(SigningKey.generate())))
        try:
            office.office.enroll(msgspec.json.encode(enrolment.ask(token, body)))
        except FleetError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1


def test_tokens_are_forgotten_when_they_have_expired(tmp_path: Path) -> None:
    members = Members(FleetFolder(tmp_path).path / "devices.sqlite")
    old = members.new_tokens([("berlin", "a")], expires_ms=10, now_ms=0)[0]

    members.new_tokens([("berlin", "b")], expires_ms=99, now_ms=20)

    with members.change() as change:
        assert change.token(old.id) is None


def test_every_change_of_the_record_is_seen_and_no_reading(tmp_path: Path) -> None:
    members, again = (Members(tmp_path / "devices.sqlite") for _ in range(2))
    seen = [members.version()]

    for number in range(20):
        with again.change() as change:
            change.enrol("berlin", "cam", now_ms=number)
        seen.append(members.version())
        assert members.current()
        assert members.version() == seen[-1]

    assert len(set(seen)) == 21
