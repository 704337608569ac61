"""When a command is sent, asked about again, and given up; what its answers mean. Pure functions.

A device gets one command at a time, the next when the one before has come to an end: so a number
that it has passed was answered, or given up. Rule: `expired` is said only of what cannot have run,
`unanswered` only of what nobody can tell; a result that comes after all is taken. Time runs for
every command, also for those behind another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from edgekit.control import CommandResult

State = Literal[
    "waiting", "sent", "running", "done", "failed", "refused", "interrupted", "expired",
    "unanswered",
]  # fmt: skip
OPEN: tuple[State, ...] = ("waiting", "sent", "running")

# From the expiry until nobody waits for an answer any more: what was begun may take its time.
ANSWER_ROOM_MS = 15 * 60_000
FIRST_REPEAT_S = 10.0
LONGEST_REPEAT_S = 300.0
MOST_CHALLENGES = 10

# A message of a stranger to the device is answered with these under the same id, so they are no
# last word.
_DOUBTFUL = frozenset({"malformed", "untrusted", "wrong_id", "wrong_device", "replayed"})


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """A command that has not come to an end, and its device.

    Attributes:
        online: what the broker said last of the device.
        boot: which start of its daemon that was; empty where it never said.
    """

    id: str
    device: str
    state: State
    expires_ms: int
    online: bool
    boot: str


class Attempt(NamedTuple):
    """What was sent of a command since the connection to the broker was made.

    Attributes:
        boot: the start that it was sent for.
        at_s: when, by the monotonic clock.
        times: how often.
        challenges: how many the device asked back.
        challenge: one that is still to be answered.
    """

    boot: str
    at_s: float
    times: int = 1
    challenges: int = 0
    challenge: str | None = None


class Change(NamedTuple):
    """The state that an answer brings about; `None` for a challenge to be answered."""

    state: State | None
    challenge: str | None = None


Step = Literal["send", "wait", "expire", "give_up"]


def steps(
    commands: Sequence[Open], attempts: Mapping[str, Attempt], *, now_ms: int, now_s: float
) -> list[tuple[Open, Step]]:
    """What to do with each command; those of a device come in the order of their numbers."""
    found: list[tuple[Open, Step]] = []
    devices: set[str] = set()
    for command in commands:
        if command.device in devices:
            found.append((command, _end(command, now_ms=now_ms) or "wait"))
            continue
        devices.add(command.device)
        attempt = attempts.get(command.id)
        found.append((command, step(command, attempt, now_ms=now_ms, now_s=now_s)))
    return found


def step(command: Open, attempt: Attempt | None, *, now_ms: int, now_s: float) -> Step:
    """What to do with the next command of a device."""
    ends = _end(command, now_ms=now_ms)
    if ends is not None:
        return ends
    if not command.online or not command.boot:
        return "wait"
    if attempt is None or attempt.boot != command.boot or attempt.challenge is not None:
        return "send"
    return "send" if now_s >= attempt.at_s + repeat_s(attempt.times) else "wait"


def repeat_s(times: int) -> float:
    """How long to wait for an answer to the last of so many attempts, in seconds."""
    return float(min(LONGEST_REPEAT_S, FIRST_REPEAT_S * 2.0 ** min(times - 1, 16)))


def sent(attempt: Attempt | None, *, boot: str, now_s: float) -> Attempt:
    """The attempts, with one more."""
    if attempt is None or attempt.boot != boot:
        return Attempt(boot, now_s)
    return attempt._replace(at_s=now_s, times=attempt.times + 1, challenge=None)


def change(
    state: State,
    reason: str | None,
    result: CommandResult,
    *,
    expires_ms: int,
    now_ms: int,
    challenges: int,
) -> Change | None:
    """What an answer brings about; `None` where it changes nothing.

    Args:
        state: of the command, with its `reason`.
        reason: why it is in that state.
        result: from its device.
        expires_ms: when it expires.
        now_ms: the coordinator's clock; devices' clocks do not count.
        challenges: how many of the device's were answered already.
    """
    is_last_word = state not in (*OPEN, "expired", "unanswered") and reason not in _DOUBTFUL
    if is_last_word:
        return None
    if result.state == "running":
        return Change("running") if state != "running" else None
    if result.state != "refused":
        return Change(result.state)
    if state == "running" and result.reason in _DOUBTFUL:
        return None
    if result.reason == "other_boot":
        # Its status will name the new one.
        return None
    if result.reason == "stale":
        if now_ms > expires_ms:
            return Change("expired")
        if result.challenge is not None and challenges < MOST_CHALLENGES:
            return Change(None, result.challenge)
    return Change("refused")


def _end(command: Open, *, now_ms: int) -> Step | None:
    """How a command ends by its time alone; `None` where it does not yet."""
    if command.state == "waiting" and now_ms > command.expires_ms:
        return "expire"
    return "give_up" if now_ms > command.expires_ms + ANSWER_ROOM_MS else None
