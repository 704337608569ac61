"""Commands on a device: which are taken, each once, and what is known after a kill."""

from __future__ import annotations

import base64
import threading
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import control, envelope, messages
from edgekit.control import Command, CommandResult
from edgekit.errors import EngineError, MessageError, UsageError
from edgekit_runtime.control.audit import Allowance, Audit
from edgekit_runtime.control.control import REFUSALS_AT_ONCE
from edgekit_runtime.control.execution import Execution
from edgekit_runtime.control.judge import SKEW_MS, Here, Refusal, judge
from edgekit_runtime.control.outcome import Outcome
from edgekit_runtime.control.settings import CommandsSection
from tests.clock import ManualClock
from tests.runtime.commanding import DEVICE, KEY, STRANGER, Rig, counted, hands, held
from tests.runtime.served import until

YEAR_S = 366 * 86_400.0


# The rule.

times = st.integers(0, 1 << 50)
commands = st.builds(
    Command,
    id=st.sampled_from(["a", "b"]),
    device=st.sampled_from([DEVICE, "berlin/gate-2"]),
    counter=st.integers(1, 9),
    boot=st.sampled_from(["0" * 16, "1" * 16]),
    challenge=st.sampled_from([None, "2" * 16, "3" * 16]),
    issued_at=times,
    expires_at=times,
    kind=st.just("logs"),
)
heres = st.builds(
    Here,
    device=st.just(DEVICE),
    boot=st.just("0" * 16),
    counter=st.integers(0, 9),
    latest=st.sampled_from([None, "a"]),
    now_ms=times,
    challenge=st.sampled_from([None, "2" * 16]),
)


@given(command=commands, here=heres, topic_id=st.sampled_from(["a", "b"]))
@settings(max_examples=500)
def test_a_command_is_taken_only_by_its_device_and_start_above_its_counter_and_fresh(
    command: Command, here: Here, topic_id: str
) -> None:
    if judge(command, here, topic_id=topic_id) != "take":
        return
    assert (command.id, command.device, command.boot) == (topic_id, here.device, here.boot)
    assert command.counter > here.counter
    assert command.id != here.latest
    answers = here.challenge is not None and command.challenge == here.challenge
    assert answers or command.issued_at - SKEW_MS <= here.now_ms <= command.expires_at


@given(command=commands, here=heres)
def test_the_latest_command_is_answered_again_however_late(command: Command, here: Here) -> None:
    same = msgspec.structs.replace(command, id="a", device=DEVICE)
    known = msgspec.structs.replace(here, latest="a")

    assert judge(same, known, topic_id="a") == "repeat"


@given(command=commands, here=heres)
def test_what_was_taken_is_never_taken_again(command: Command, here: Here) -> None:
    if judge(command, here, topic_id=command.id) == "take":
        after = msgspec.structs.replace(here, counter=command.counter, latest=command.id)
        assert judge(command, after, topic_id=command.id) == "repeat"
        later = msgspec.structs.replace(after, counter=command.counter + 1, latest="later")
        assert isinstance(judge(command, later, topic_id=command.id), Refusal)


# A device.


def test_a_command_is_carried_out_and_answered(tmp_path: Path) -> None:
    done: list[str] = []
    with Rig(tmp_path, table={"reload": counted(done)}) as rig:
        result = rig.ask(rig.command("reload"))

    assert (result.state, result.output, done) == ("done", {"ran": 1}, ["Reload"])
    assert [found.state for found in rig.published] == ["running", "done"]
    states = [(line["state"], line["by"], line["key"]) for line in rig.audit()]
    assert states == [("running", "ada@desk", KEY.public.id), ("done", "ada@desk", KEY.public.id)]


def test_a_command_that_comes_again_is_answered_again_and_not_run_again(tmp_path: Path) -> None:
    done: list[str] = []
    with Rig(tmp_path, table={"reload": counted(done)}) as rig:
        command = rig.command("reload")
        first = rig.ask(command)
        rig.clock.advance(3600)
        again = rig.ask(command)
    with Rig(tmp_path, table={"reload": counted(done)}, boot="1" * 16) as rig:
        after = rig.ask(command)

    assert first == again == after
    assert done == ["Reload"]


def changed(rig: Rig, how: str) -> Command:
    now_ms = rig.clock.now_ms()
    changes: dict[str, dict[str, Any]] = {
        "of another device": {"device": "berlin/gate-2"},
        "of another site": {"device": "paris/gate-1"},
        "of an earlier start": {"boot": "0" * 16},
        "expired": {"expires_at": now_ms - 1},
        "of tomorrow": {"issued_at": now_ms + 86_400_000, "expires_at": now_ms + 90_000_000},
        "with a number that was passed": {"counter": 1},
    }
    return rig.command("reload", **changes[how])


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("of another device", "wrong_device"),
        ("of another site", "wrong_device"),
        ("of an earlier start", "other_boot"),
        ("expired", "stale"),
        ("of tomorrow", "stale"),
        ("with a number that was passed", "replayed"),
    ],
)
def test_a_command_that_does_not_count_is_refused(tmp_path: Path, how: str, reason: str) -> None:
    done: list[str] = []
    with Rig(tmp_path, table={"reload": counted(done)}) as rig:
        rig.ask(rig.command("logs"))
        result = rig.ask(changed(rig, how))

        assert (result.state, result.reason, done) == ("refused", reason, [])
        assert rig.audit()[-1]["reason"] == reason
        assert rig.ask(rig.command("reload")).state == "done"


def test_a_command_under_another_id_is_refused(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        result = rig.ask(rig.command(), id_="another")

    assert (result.id, result.reason) == ("another", "wrong_id")


@pytest.mark.parametrize("key", [STRANGER, None])
def test_a_command_that_no_trusted_key_signed_is_refused(tmp_path: Path, key: Any) -> None:
    with Rig(tmp_path) as rig:
        result = rig.ask(rig.command(), key=key)

    assert result.state == "refused"
    assert result.reason == ("malformed" if key is None else "untrusted")
    assert rig.audit()[-1]["key"] == ""


def test_a_signature_over_something_else_is_none_over_a_command(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        raw = messages.encode(rig.command())
        rig.control.received("c1", envelope.sign(raw, kind=envelope.DESIRED, key=KEY))
        until(lambda: bool(rig.published))

    assert rig.published[0].reason == "malformed"


def test_an_insecure_fleet_takes_commands_unsigned_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Rig(tmp_path, insecure=True) as rig:
        assert rig.ask(rig.command(), key=None).state == "done"

    assert "commands are taken unsigned" in caplog.text


def test_a_board_whose_clock_is_a_year_off_is_asked_with_its_own_challenge(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        command = rig.command("logs")
        rig.clock.advance(YEAR_S)
        stale = rig.ask(command)
        assert (stale.reason, bool(stale.challenge)) == ("stale", True)
        answered = msgspec.structs.replace(command, challenge=stale.challenge)
        assert rig.ask(answered).state == "done"

        following = rig.command("logs", issued_at=command.issued_at, expires_at=command.expires_at)
        spent = rig.ask(msgspec.structs.replace(following, challenge=stale.challenge))
        assert (spent.reason, spent.challenge != stale.challenge) == ("stale", True)


def test_a_challenge_is_answered_soon_or_not_at_all(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        command = rig.command()
        rig.clock.advance(YEAR_S)
        stale = rig.ask(command)
        rig.clock.advance(600)
        late = rig.ask(msgspec.structs.replace(command, challenge=stale.challenge))

    assert late.reason == "stale"


def test_a_replay_is_refused_even_where_the_journal_was_lost(tmp_path: Path) -> None:
    done: list[str] = []
    with Rig(tmp_path, table={"reload": counted(done)}) as rig:
        command = rig.command("reload")
        rig.ask(command)
    (tmp_path / "commands" / "latest.json").write_bytes(b"{")
    with Rig(tmp_path, table={"reload": counted(done)}, boot="1" * 16) as rig:
        result = rig.ask(command)

    assert (result.reason, done) == ("other_boot", ["Reload"])


@pytest.mark.parametrize(
    ("kind", "args", "reason"),
    [
        ("dance", {}, "unknown_kind"),
        ("logs", {"lines": 0}, "bad_arguments"),
        ("logs", {"pages": 3}, "bad_arguments"),
        ("benchmark", {}, "bad_arguments"),
        ("rollback", {"model": "../../etc"}, "bad_arguments"),
        ("benchmark", {"model": "tiny", "seconds": 1e9}, "bad_arguments"),
        ("cancel", {"model": "tiny"}, "not_allowed"),
    ],
)
def test_what_is_not_known_or_not_allowed_is_refused_and_uses_up_its_number(
    tmp_path: Path, kind: str, args: dict[str, Any], reason: str
) -> None:
    allow = CommandsSection(allow=("logs", "benchmark", "rollback"))
    with Rig(tmp_path, settings=allow) as rig:
        command = rig.command(kind, args=args)
        result = rig.ask(command)
        assert (result.state, result.reason) == ("refused", reason)
        other = rig.ask(msgspec.structs.replace(command, id="other", kind="logs", args={}))

    assert other.reason == "replayed"


def test_a_board_that_takes_no_commands_says_so(tmp_path: Path) -> None:
    with Rig(tmp_path, settings=CommandsSection(enabled=False)) as rig:
        assert rig.ask(rig.command()).reason == "not_allowed"


def test_what_fails_is_answered_with_its_reason_and_the_next_is_taken(tmp_path: Path) -> None:
    def fails(*_: Any) -> dict[str, Any]:
        raise EngineError("the engine is cold", hint="warm it")

    def breaks(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError("of zero")

    def talks(*_: Any) -> dict[str, Any]:
        return {"said": "a" * control.MAX_OUTPUT_BYTES}

    table: Any = {"reload": fails, "rollback": breaks, "cancel": talks}
    args = {"model": "tiny"}
    with Rig(tmp_path, table=table) as rig:
        failed = rig.ask(rig.command("reload"))
        broken = rig.ask(rig.command("rollback", args=args))
        large = rig.ask(rig.command("cancel", args=args))
        assert rig.ask(rig.command("logs")).state == "done"

    assert (failed.reason, failed.detail) == ("error", "the engine is cold (warm it)")
    assert (broken.reason, "of zero" in broken.detail) == ("internal", True)
    assert (large.state, "bytes" in large.detail) == ("failed", True)


def test_work_that_hangs_is_given_up_and_too_much_of_it_refuses_more(tmp_path: Path) -> None:
    gate = threading.Event()
    run = Execution(
        CommandsSection(limit_s=0.05), hands(tmp_path), {"logs": held(gate)}, clock=ManualClock()
    )
    command = Rig.command
    with Rig(tmp_path) as rig:
        outcomes = [run.run(command(rig, "logs")) for _ in range(3)]
        gate.set()
        until(lambda: run.run(command(rig, "logs")).state == "done")

    assert [outcome.reason for outcome in outcomes] == ["time_limit", "time_limit", "busy"]


def test_a_kill_in_the_middle_is_answered_with_interrupted_and_the_work_not_begun_again(
    tmp_path: Path,
) -> None:
    gate, begun = threading.Event(), threading.Event()
    killed = Rig(tmp_path, table={"reload": held(gate, begun.set)})
    command = killed.command("reload")
    killed.send(command)
    assert begun.wait(10)

    done: list[str] = []
    with Rig(tmp_path, table={"reload": counted(done)}, boot="1" * 16) as rig:
        rig.control.connected()
        until(lambda: bool(rig.published))
        assert rig.published[0].state == "interrupted"
        assert rig.ask(command).state == "interrupted"
        assert (done, rig.audit()[-1]["state"]) == ([], "interrupted")
    gate.set()
    killed.control.close(timeout_s=10)


def test_a_result_that_found_no_link_is_told_at_the_next_connection(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.is_linked = False
        rig.send(rig.command())
        until(lambda: [line["state"] for line in rig.audit()] == ["running", "done"])
        assert not rig.published
        rig.is_linked = True
        until(lambda: rig.control.is_idle)
        rig.control.connected()
        until(lambda: bool(rig.published))

    assert rig.published[-1].state == "done"


def test_a_board_that_can_write_nothing_still_answers_questions_and_changes_nothing(
    tmp_path: Path,
) -> None:
    done: list[str] = []
    with Rig(tmp_path, table={"reload": counted(done), "logs": counted(done)}) as rig:
        (tmp_path / "commands").write_bytes(b"in the way")
        read = rig.ask(rig.command("logs"))
        change = rig.ask(rig.command("reload"))

    assert (read.state, change.state, change.reason) == ("done", "refused", "storage")
    assert done == ["Logs"]


def test_strangers_are_noted_and_answered_only_so_often(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        for number in range(3 * REFUSALS_AT_ONCE):
            rig.control.received(f"x{number}", b"{}")
            until(lambda: rig.control.is_idle)
        assert rig.ask(rig.command()).state == "done"
        refused = [line for line in rig.audit() if line["state"] == "refused"]

    assert len(refused) == REFUSALS_AT_ONCE


@given(raw=st.binary(max_size=300), keys=st.booleans())
def test_garbage_is_an_error_that_names_its_topic(raw: bytes, keys: bool) -> None:
    with pytest.raises(MessageError, match="cmd/x"):
        control.decode(raw, trusted=[KEY.public] if keys else None, topic="cmd/x")


# What is on disk.


def test_the_audit_keeps_the_newest_lines_in_two_bounded_files(tmp_path: Path) -> None:
    audit = Audit(tmp_path, boot="0" * 16, clock=ManualClock(), max_bytes=2000)
    for number in range(100):
        audit.add(f"n{number}", Outcome("refused", "untrusted", "x" * 50))
    files = sorted((tmp_path / "commands").iterdir())
    lines = [line for path in files for line in path.read_bytes().splitlines()]

    assert [path.name for path in files] == ["audit.1.jsonl", "audit.jsonl"]
    assert all(path.stat().st_size <= 2000 for path in files)
    numbers = [msgspec.json.decode(line)["id"] for line in lines]
    assert numbers == [f"n{number}" for number in range(100 - len(numbers), 100)]


@given(steps=st.lists(st.floats(0, 50), max_size=60))
def test_an_allowance_is_never_exceeded_over_any_time(steps: list[float]) -> None:
    clock = ManualClock()
    allowance = Allowance(burst=3, every_s=10.0, clock=clock)
    taken: list[float] = []
    for step in steps:
        clock.advance(step)
        if allowance.take():
            taken.append(clock.monotonic())
    for first, start in enumerate(taken):
        for count, end in enumerate(taken[first:], start=1):
            assert count <= 3 + (end - start) / 10.0 + 1e-6


# Outputs.

outputs = st.dictionaries(st.text(max_size=5), st.text(max_size=3000), max_size=5)


@given(output=outputs)
def test_an_output_comes_back_as_it_was_whether_packed_or_not(output: dict[str, Any]) -> None:
    plain, packed = control.packed(output)
    result = CommandResult(id="a", boot="0" * 16, at=0, state="done", output=plain, packed=packed)

    assert control.output_of(result, topic="t") == output


def test_a_stream_that_unpacks_to_more_than_it_may_is_refused() -> None:
    bomb = base64.b64encode(zlib.compress(b'{"a":"' + b"a" * 10_000_000 + b'"}')).decode()
    result = CommandResult(id="a", boot="0" * 16, at=0, state="done", packed=bomb)

    with pytest.raises(MessageError, match="packed holds more"):
        control.output_of(result, topic="t")


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_output_that_is_nested_too_deep_is_refused(is_packed: bool) -> None:
    deep: dict[str, Any] = {}
    for _ in range(control.MAX_OUTPUT_DEPTH + 1):
        deep = {"a": [deep]}
    result = CommandResult(id="a", boot="0" * 16, at=0, state="done", output=deep)
    if is_packed:
        squeezed = base64.b64encode(zlib.compress(msgspec.json.encode(deep))).decode()
        result = msgspec.structs.replace(result, output=None, packed=squeezed)

    with pytest.raises(MessageError, match="nested deeper"):
        control.output_of(result, topic="t")


def test_the_page_on_commands_gives_each_reason_with_its_meaning_and_each_kind() -> None:
    page = (Path(__file__).parents[2] / "docs" / "remote.md").read_text("utf-8")

    for reason, meaning in control.MEANING.items():
        assert f"| `{reason}` | {meaning} |" in page
    for kind in control.KINDS:
        assert f"| `{kind}` |" in page


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UsageError, match=r"benchmark.*seconds"):
        control.arguments("benchmark", {"model": "tiny", "seconds": 0})
