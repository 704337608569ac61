"""Judge: whether a command that a trusted key signed may be carried out here and now.

Rule: a command is carried out at most once, by the device and the start of its daemon that it is
for, and only while it is fresh. Three things show that, because each alone can fail on a board:

- The *counter* only grows and is on disk: what was taken, or overtaken, is never taken again.
- The *boot* is drawn anew at each start: nothing that was recorded before it is taken, even where
  the disk with the counter was lost.
- The *clock* bounds how long somebody can hold a command back. Where the board's clock does not
  agree, which a wrong clock and an old command have in common, the device asks with a *challenge*
  that it draws itself: the coordinator, whose clock counts, signs the command again with it while
  it still counts. So a board whose clock is a year off can be asked what is wrong with it.
"""

from __future__ import annotations

from typing import Literal

from edgekit.control import Command
from edgekit.structs import Strict

# How far a board's clock may be behind the coordinator's before it is asked back.
SKEW_MS = 120_000

Refused = Literal["wrong_id", "wrong_device", "replayed", "other_boot", "stale"]


class Here(Strict, frozen=True, kw_only=True):
    """What a command is judged by.

    Attributes:
        device: `SITE/ID`.
        boot: of this start.
        counter: highest that was taken.
        latest: id of the command that was taken last; its result is known.
        now_ms: this board's clock, right or wrong.
        challenge: the one that is open, if one is.
    """

    device: str
    boot: str
    counter: int
    latest: str | None
    now_ms: int
    challenge: str | None


class Refusal(Strict, frozen=True):
    """Why a command is not carried out; `wants_challenge` where it may come again with one."""

    reason: Refused
    detail: str
    wants_challenge: bool = False


def judge(command: Command, here: Here, *, topic_id: str) -> Literal["take", "repeat"] | Refusal:
    """`take` for a command to carry out, `repeat` for the latest one, which is answered again.

    Args:
        command: signed by a trusted key.
        here: this device, now.
        topic_id: the id in the topic by which it came; nobody signed that one.
    """
    if command.id != topic_id:
        return Refusal("wrong_id", f"the command is {command.id}, its topic says {topic_id}")
    if command.device != here.device:
        return Refusal("wrong_device", f"the command is for {command.device}")
    # Before all that is about freshness: the answer must be had as long as the question is asked.
    if command.id == here.latest:
        return "repeat"
    if command.counter <= here.counter:
        return Refusal("replayed", f"counter {command.counter} is not above {here.counter}")
    if command.boot != here.boot:
        return Refusal("other_boot", f"the command is for boot {command.boot}")
    if here.challenge is not None and command.challenge == here.challenge:
        return "take"
    if not command.issued_at - SKEW_MS <= here.now_ms <= command.expires_at:
        late_s = (here.now_ms - command.expires_at) / 1000
        told = f"expired {late_s:.0f} s ago" if late_s > 0 else "was not issued yet"
        return Refusal("stale", f"by this device's clock it {told}", wants_challenge=True)
    return "take"
