"""Commands from the fleet's side: kept until each has come to an end, over a link that loses."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import control, messages, topics
from edgekit.clock import SystemClock
from edgekit.control import Command, CommandResult, Reload
from edgekit.errors import FleetError, MessageError, UsageError
from edgekit.fleet import control_rows, control_rules, inventory, store
from edgekit.fleet.control import Control
from edgekit.fleet.control_rows import CommandView, Request
from edgekit.fleet.control_rules import ANSWER_ROOM_MS, OPEN, Attempt, Open
from edgekit.fleet.store import Store, UnknownId
from edgekit.messages import Status
from edgekit.signing import SigningKey
from edgekit_runtime.control.control import Control as DeviceControl
from edgekit_runtime.control.hands import Hands, Wait
from edgekit_runtime.control.settings import CommandsSection
from tests.clock import ManualClock
from tests.fleet.device_simulator import DeviceSimulator
from tests.fleet.processes import Fleet, edgekit, until
from tests.runtime.commanding import KEY, Rig, hands
from tests.runtime.served import until as soon

BOOT = "00000000000000aa"
DEVICE = "berlin/gate-1"


class Side:
    """The coordinator's side, with a store and a link that keeps what was sent."""

    def __init__(self, folder: Path, *, key: SigningKey | None = KEY) -> None:
        self.clock = ManualClock()
        self.store = Store.in_folder(folder)
        self.key = key
        self.sent: list[tuple[str, bytes]] = []
        self.has_room = True
        self.start()

    def start(self) -> None:
        """As after a kill: all that is known is in the store."""
        self.control = Control(
            store=self.store,
            clock=self.clock,
            publish=self._publish,
            key=self.key,
            on_change=lambda: None,
        )

    def says(self, device: str = DEVICE, *, online: bool = True, boot: str = BOOT) -> None:
        changes = inventory.Changes(now_ms=self.clock.now_ms())
        changes.add(device, Status(online=online, boot=boot))
        with self.store.write() as connection:
            changes.write(connection)

    def ask(self, device: str = DEVICE, kind: Any = "logs", **given: Any) -> str:
        return self.control.ask(Request(device=device, kind=kind, **given))

    def find(self, number: str) -> CommandView:
        with self.store.read() as connection:
            return control_rows.find(connection, number)

    def commands(self) -> list[Command]:
        """What was sent and not looked at yet."""
        sent, self.sent = self.sent, []
        trusted = [self.key.public] if self.key else None
        return [control.decode(raw, trusted=trusted, topic=topic).command for topic, raw in sent]

    def answer(self, command: Command, state: Any = "done", **given: Any) -> None:
        result = CommandResult(id=command.id, boot=BOOT, at=1, state=state, **given)
        self.receive(command.device, result)
        self.control.step()

    def receive(self, device: str, result: CommandResult, *, number: str = "") -> None:
        leaf = control.result_leaf(number or result.id)
        parsed = topics.DeviceTopic(*inventory.split(device), leaf)
        assert self.control.receive(parsed, messages.encode(result))

    def audit(self) -> list[tuple[str, str]]:
        with self.store.read() as connection:
            found = connection.execute(store.audit.select()).mappings()
            return [(row["action"], row["subject"]) for row in found]

    def _publish(self, topic: str, payload: bytes) -> bool:
        if self.has_room:
            self.sent.append((topic, payload))
        return self.has_room


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    made = Side(tmp_path)
    made.says()
    yield made
    made.store.close()


def test_a_command_is_signed_sent_to_its_device_and_kept_with_its_output(side: Side) -> None:
    number = side.ask(args={"lines": 5}, by="ada@desk")
    side.control.step()
    assert side.sent[0][0] == f"edgekit/v1/berlin/gate-1/cmd/{number}"
    (command,) = side.commands()
    side.answer(command, "running")
    assert side.find(number).state == "running"
    output, packed = control.packed({"lines": ["x" * 100] * 100})
    side.answer(command, output=output, packed=packed, took_ms=3)

    found = side.find(number)
    assert (command.device, command.boot, command.by) == (DEVICE, BOOT, "ada@desk")
    assert (found.state, found.took_ms) == ("done", 3)
    assert found.output == {"lines": ["x" * 100] * 100}
    assert side.audit() == [("command", DEVICE), ("command_ended", DEVICE)]


def test_a_device_that_is_offline_gets_its_command_when_it_is_back_and_no_other_start_of_it(
    side: Side,
) -> None:
    side.says(online=False)
    number = side.ask()
    side.control.step()
    assert not side.sent
    side.clock.advance(1800)
    side.says(boot="00000000000000bb")
    side.control.step()

    (command,) = side.commands()
    assert (command.id, command.boot) == (number, "00000000000000bb")


def test_a_device_gets_one_command_at_a_time_in_their_order(side: Side) -> None:
    numbers = [side.ask() for _ in range(3)]
    side.control.step()
    taken = []
    for _ in numbers:
        (command,) = side.commands()
        taken.append(command)
        side.answer(command)

    assert [command.id for command in taken] == numbers
    assert [c.counter for c in taken] == sorted({c.counter for c in taken})


def test_what_is_not_answered_is_asked_again_ever_more_rarely(side: Side) -> None:
    side.ask(ttl_s=86_400)
    for _ in range(720):
        side.control.step()
        side.clock.advance(5)

    assert 10 < len(side.sent) < 20


def test_a_new_connection_or_a_killed_coordinator_asks_again_at_once(side: Side) -> None:
    number = side.ask()
    side.control.step()
    side.control.forget()
    side.control.step()
    side.start()
    side.control.step()

    assert [command.id for command in side.commands()] == [number] * 3


def test_a_link_without_room_is_tried_again_and_nothing_is_lost(side: Side) -> None:
    number = side.ask()
    side.has_room = False
    assert side.control.step() is False
    side.has_room = True
    assert side.control.step() is True
    assert [command.id for command in side.commands()] == [number]


def test_what_was_never_sent_expires_and_what_was_sent_is_unanswered_until_it_is_not(
    side: Side,
) -> None:
    sent = side.ask(ttl_s=60)
    side.control.step()
    (command,) = side.commands()
    side.says(online=False)
    waiting = side.ask(ttl_s=60)
    side.clock.advance(61 + ANSWER_ROOM_MS / 1000)
    for _ in range(2):
        side.control.step()
    assert side.find(sent).state == "unanswered"
    assert side.find(waiting).state == "expired"

    side.answer(command, output={"late": True})
    assert (side.find(sent).state, side.find(sent).output) == ("done", {"late": True})


def test_a_command_behind_another_expires_by_its_own_time(side: Side) -> None:
    first = side.ask(ttl_s=86_400)
    side.control.step()
    (command,) = side.commands()
    side.says(online=False)
    behind, last = side.ask(ttl_s=60), side.ask(ttl_s=7200)
    side.clock.advance(61)
    side.control.step()

    assert [side.find(one).state for one in (first, behind, last)] == ["sent", "expired", "waiting"]
    assert side.find(behind).detail == "never sent"
    side.says()
    side.answer(command)
    assert [one.id for one in side.commands()] == [last]


def test_a_device_whose_clock_is_wrong_is_answered_its_challenge_while_the_command_counts(
    side: Side,
) -> None:
    number = side.ask(ttl_s=60)
    side.control.step()
    (command,) = side.commands()
    side.answer(command, "refused", reason="stale", challenge="1" * 16)
    (again,) = side.commands()
    assert (again.challenge, again.counter) == ("1" * 16, command.counter)

    side.clock.advance(61)
    side.answer(again, "refused", reason="stale", challenge="2" * 16)
    assert (side.find(number).state, side.sent) == ("expired", [])


def test_endless_challenges_come_to_an_end(side: Side) -> None:
    number = side.ask()
    side.control.step()
    for _ in range(50):
        if side.find(number).state not in OPEN:
            break
        for command in side.commands():
            side.answer(command, "refused", reason="stale", challenge="1" * 16)

    assert side.find(number).state == "refused"


def test_a_refusal_that_a_stranger_can_bring_about_is_not_the_last_word(side: Side) -> None:
    number = side.ask()
    side.control.step()
    (command,) = side.commands()
    side.answer(command, "refused", reason="malformed")
    assert side.find(number).state == "refused"
    side.answer(command, "done", output={"it": "ran"})
    side.answer(command, "refused", reason="malformed")

    assert side.find(number).state == "done"


@pytest.mark.parametrize("device", ["berlin/gate-2", "paris/gate-1"])
def test_a_device_cannot_answer_for_another(side: Side, device: str) -> None:
    number = side.ask()
    side.control.step()
    side.receive(device, CommandResult(id=number, boot=BOOT, at=1, state="done"))
    side.control.step()

    assert side.find(number).state == "sent"


def test_an_answer_under_another_id_or_of_no_command_or_garbage_is_dropped(side: Side) -> None:
    number = side.ask()
    side.control.step()
    with pytest.raises(MessageError, match="answers command"):
        side.receive(
            DEVICE, CommandResult(id="other", boot=BOOT, at=1, state="done"), number=number
        )
    side.receive(DEVICE, CommandResult(id="nobody-asked", boot=BOOT, at=1, state="done"))
    side.receive(DEVICE, CommandResult(id=number, boot=BOOT, at=1, state="done", packed="AAAA"))
    for raw in (b"", b"{", b"\xff", b"[]", b'{"state":"done"}', b"9" * 300_000):
        with pytest.raises(MessageError):
            side.control.receive(
                topics.DeviceTopic("berlin", "gate-1", control.result_leaf(number)), raw
            )
    side.control.step()

    assert side.find(number).state == "sent"


def test_what_cannot_be_asked_is_refused_at_once(side: Side) -> None:
    with pytest.raises(UsageError, match="lines"):
        side.ask(args={"lines": 0})
    with pytest.raises(UnknownId, match="gate-9"):
        side.ask("berlin/gate-9")
    for _ in range(control_rows.MOST_OPEN):
        side.ask()
    with pytest.raises(FleetError, match="wait for berlin/gate-1"):
        side.ask()


def test_numbers_grow_past_a_clock_that_steps_back_and_a_store_that_was_pruned(side: Side) -> None:
    counters: list[int] = []
    for step_s in (0.0, -86_400.0, 5.0):
        side.clock.advance(step_s)
        side.ask(ttl_s=1e6)
        side.control.step()
        (command,) = side.commands()
        counters.append(command.counter)
        side.answer(command)
    with side.store.write() as connection:
        assert control_rows.prune(connection, before_ms=1 << 50) == 2
    side.ask()
    side.control.step()
    counters.append(side.commands()[0].counter)

    assert counters == sorted(set(counters))


# The rules.

opens = st.builds(
    Open,
    id=st.just("a"),
    device=st.just(DEVICE),
    state=st.sampled_from(OPEN),
    expires_ms=st.integers(0, 10**7),
    online=st.booleans(),
    boot=st.sampled_from(["", BOOT]),
)
attempts = st.none() | st.builds(
    Attempt,
    boot=st.sampled_from([BOOT, "0" * 16]),
    at_s=st.floats(0, 1e4),
    times=st.integers(1, 40),
)


@given(command=opens, attempt=attempts, now_ms=st.integers(0, 10**8), now_s=st.floats(0, 1e5))
def test_only_what_was_never_sent_is_called_expired_and_only_who_is_there_is_sent_anything(
    command: Open, attempt: Attempt | None, now_ms: int, now_s: float
) -> None:
    step = control_rules.step(command, attempt, now_ms=now_ms, now_s=now_s)

    assert step != "expire" or (command.state == "waiting" and now_ms > command.expires_ms)
    assert step != "send" or (command.online and command.boot)
    assert step != "give_up" or now_ms > command.expires_ms + ANSWER_ROOM_MS


@given(
    commands=st.lists(opens, max_size=6),
    now_ms=st.integers(0, 10**8),
    now_s=st.floats(0, 1e5),
    devices=st.lists(st.sampled_from(["a/1", "a/2"]), min_size=6, max_size=6),
)
def test_every_command_ends_by_its_time_and_one_of_a_device_is_sent_at_most(
    commands: list[Open], devices: list[str], now_ms: int, now_s: float
) -> None:
    named = [
        msgspec.structs.replace(command, id=str(place), device=device)
        for place, (command, device) in enumerate(zip(commands, devices, strict=False))
    ]
    steps = control_rules.steps(named, {}, now_ms=now_ms, now_s=now_s)

    sent = [command.device for command, step in steps if step == "send"]
    assert len(sent) == len(set(sent))
    assert [command for command, _ in steps] == named
    for command, step in steps:
        is_over = command.state == "waiting" and now_ms > command.expires_ms
        is_over |= now_ms > command.expires_ms + ANSWER_ROOM_MS
        assert (step in ("expire", "give_up")) is is_over


@given(
    state=st.sampled_from(["done", "failed", "interrupted"]),
    answer=st.sampled_from(["running", "done", "failed", "refused", "interrupted"]),
    reason=st.none() | st.sampled_from(["stale", "malformed", "other_boot", "busy"]),
)
def test_what_has_come_to_an_end_stays_as_it_is(state: Any, answer: Any, reason: Any) -> None:
    result = CommandResult(id="a", boot=BOOT, at=1, state=answer, reason=reason)

    assert control_rules.change(state, None, result, expires_ms=0, now_ms=1, challenges=0) is None


# Both sides, and a link between them that loses, repeats and delays; both are killed.


class Between:
    """Carries messages between the two, badly."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.side = Side(folder)
        # Every other device has a clock that is a year behind.
        behind_ms = seed % 2 * 366 * 86_400_000
        self.clock = ManualClock(now_ms=self.side.clock.now_ms() - behind_ms)
        self.ran: list[str] = []
        self.boots = 0
        self.old: list[tuple[str, bytes]] = []
        self.gate = threading.Event()
        self.hangs = False
        self.gone: list[Rig] = []
        self.rig = self._rig()

    def turn(self) -> None:
        """Some of what was sent arrives, some twice, some later, some never."""
        self.side.control.step()
        sent, self.side.sent = self.side.sent, []
        self.old += sent
        for topic, payload in [*sent, *self.random.sample(self.old, min(2, len(self.old)))]:
            if self.random.random() < 0.6:
                self.rig.control.received(topic.rpartition("/")[2], payload)
        soon(lambda: self.rig.control.is_idle or self.hangs)
        for result in list(self.rig.published):
            if self.random.random() < 0.5:
                self.side.receive(DEVICE, result)
            if self.random.random() < 0.5:
                self.rig.published.remove(result)
        if self.random.random() < 0.2:
            self.side.start()
        if self.hangs or self.random.random() < 0.1:
            self._kill()
        self.side.clock.advance(20)
        self.clock.advance(20)

    def close(self) -> None:
        self.gate.set()
        for rig in [*self.gone, self.rig]:
            rig.control.close(timeout_s=10)
        self.side.store.close()

    def _kill(self) -> None:
        """The device ends where it is, and starts again with what is on its disk."""
        self.gone.append(self.rig)
        self.hangs = False
        self.rig = self._rig()

    def _rig(self) -> Rig:
        self.boots += 1
        boot = f"{self.boots:016x}"
        self.side.says(boot=boot)
        return Rig(self.folder, boot=boot, clock=self.clock, table={"reload": self._run})

    def _run(self, args: Reload, _: Hands, __: Wait) -> dict[str, Any]:
        assert args.model is not None
        self.ran.append(args.model)
        if self.random.random() < 0.3:
            self.hangs = True
            self.gate.wait(60)
        return {}


@pytest.mark.parametrize("seed", range(6))
def test_every_command_is_begun_once_whatever_the_link_does_and_whoever_is_killed(
    tmp_path: Path, seed: int
) -> None:
    between = Between(tmp_path, seed)
    names = [f"m{number}" for number in range(8)]
    asked = [between.side.ask(kind="reload", args={"model": name}, ttl_s=86_400) for name in names]
    for _ in range(400):
        between.turn()
        if all(between.side.find(number).state not in OPEN for number in asked):
            break
    states = {between.side.find(number).state for number in asked}
    between.close()

    assert states <= {"done", "interrupted"}
    assert between.ran == names


# A real broker and a real coordinator.


class Commanded(DeviceSimulator):
    """A device on the real broker that takes commands, unsigned, as in an insecure fleet."""

    def __init__(self, fleet: Fleet, folder: Path, device: str) -> None:
        super().__init__(fleet.mqtt, device)
        self.link.subscribe(self.topic(control.COMMAND_FILTER))
        self.control = DeviceControl(
            state=folder,
            device=f"default/{device}",
            boot=self.boot,
            keys=None,
            settings=CommandsSection(),
            hands=hands(folder),
            publish=lambda leaf, raw: self.link.publish(self.topic(leaf), raw),
            clock=SystemClock(),
        )

    def __enter__(self) -> Commanded:
        self.control.start()
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close(timeout_s=10)
        super().__exit__()

    def _connect(self) -> None:
        super()._connect()
        self.control.connected()

    def _receive(self, topic: str, payload: bytes) -> None:
        number = control.command_id(topic.removeprefix(self.topic("")))
        if number is None:
            super()._receive(topic, payload)
        else:
            self.control.received(number, payload)


def found(fleet: Fleet, number: str) -> dict[str, Any]:
    return fleet.client.get(f"/api/commands/{number}", dict[str, Any])


def command_line(fleet: Fleet, *arguments: str) -> subprocess.CompletedProcess[str]:
    return edgekit("fleet", *arguments, "--coordinator", fleet.url)


def test_an_operator_asks_a_device_and_reads_what_it_did(fleet: Fleet, tmp_path: Path) -> None:
    with Commanded(fleet, tmp_path, "asked"):
        until(lambda: "asked" in fleet.devices())
        told = command_line(fleet, "command", "asked", "diagnostics", "--wait", "--json")
        assert told.returncode == 0, told.stderr
        document = json.loads(told.stdout)
        assert document["output"]["versions"]["edgekit"]

        failed = command_line(fleet, "command", "default/asked", "rollback", "none", "--wait")
        assert failed.returncode == 8
        assert "not_possible" in failed.stderr
    listed = command_line(fleet, "commands", "--device", "asked", "--json")
    kinds = [(item["kind"], item["state"]) for item in json.loads(listed.stdout)["commands"]]
    assert kinds == [("rollback", "failed"), ("diagnostics", "done")]
    shown = command_line(fleet, "commands", document["id"])
    assert "diagnostics: done" in shown.stdout
    lines = command_line(fleet, "commands").stdout.splitlines()
    assert any(document["id"] in line and "  done" in line for line in lines)
    assert max(map(len, lines)) <= 100
    assert document["by"] in shown.stdout


def test_a_killed_coordinator_still_asks_the_device_that_was_offline(
    fleet: Fleet, tmp_path: Path
) -> None:
    with Commanded(fleet, tmp_path, "away"):
        until(lambda: "away" in fleet.devices())
    until(lambda: fleet.devices()["away"]["online"] is False)
    asked = command_line(fleet, "command", "away", "set-interval", "10", "--json")
    number = json.loads(asked.stdout)["id"]
    fleet.restart(kill=True)
    assert found(fleet, number)["state"] == "waiting"
    with Commanded(fleet, tmp_path, "away"):
        until(lambda: found(fleet, number)["state"] == "done")

    assert found(fleet, number)["output"] == {"seconds": 10.0, "configured": 60.0}


def test_waiting_ends_when_the_command_expires_behind_another(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "gone"):
        until(lambda: "gone" in fleet.devices())
    until(lambda: fleet.devices()["gone"]["online"] is False)
    first = command_line(fleet, "command", "gone", "logs", "--json")
    told = command_line(fleet, "command", "gone", "logs", "--expires", "1", "--wait")

    assert told.returncode == 8
    assert "was not done (expired): never sent" in told.stderr
    assert found(fleet, json.loads(first.stdout)["id"])["state"] == "waiting"


def test_waiting_ends_when_a_device_that_was_asked_stays_silent(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "mute"):
        until(lambda: fleet.devices().get("mute", {}).get("online"))
        told = command_line(fleet, "command", "mute", "logs", "--expires", "1", "--wait")

    assert told.returncode == 8
    assert "was not done (sent): no answer within the 1 s that it counts" in told.stderr
    assert "an answer that comes later" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("command", "nobody", "logs"), 8, "nobody"),
        (("command", "nobody", "dance"), 2, "dance"),
        (("command", "nobody", "logs", "--lines", "0"), 2, "lines"),
        (("commands", "nothing"), 8, "nothing"),
    ],
)
def test_what_cannot_be_asked_is_an_error_that_names_it(
    fleet: Fleet, arguments: tuple[str, ...], code: int, said: str
) -> None:
    told = command_line(fleet, *arguments)

    assert (told.returncode, said in told.stderr) == (code, True)
