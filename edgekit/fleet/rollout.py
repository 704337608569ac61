"""Rollout: the rules by which a bundle reaches a fleet in waves that stop themselves.

A wave is asked only when every device of the waves before has answered, and at least one of the
latest wave serves the new version. Too many failures halt the rollout. A device that is revoked
before it answered leaves, and the next one takes its place: waves keep their sizes. Everything
here is a function of values; `rollouts` reads and writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from edgekit.errors import FleetError, UsageError
from edgekit.manifest import ModelName, ModelVersion
from edgekit.messages import ModelState
from edgekit.structs import Strict

State = Literal["running", "paused", "halted", "done", "aborted"]
# A device is `waiting` until it is asked and `moving` until it answers; where its rollout ends
# before that, it is `unasked` and `stopped`. Who is `skipped` or `revoked` takes no part.
Outcome = Literal[
    "waiting", "moving", "moved", "failed", "late", "skipped", "revoked", "unasked", "stopped"
]

MOVES: Mapping[State, frozenset[State]] = {
    "running": frozenset({"paused", "halted", "done", "aborted"}),
    "paused": frozenset({"running", "halted", "aborted"}),
    "halted": frozenset(),
    "done": frozenset(),
    "aborted": frozenset(),
}
NO_PART: frozenset[Outcome] = frozenset({"skipped", "revoked"})
OLD_NEWS_S = 10.0
DEFAULT_WAVES = ("1", "50%", "100%")
_SIZE = re.compile(r"([1-9][0-9]{0,8})(%?)")


class Plan(Strict, frozen=True, kw_only=True):
    """What was asked for, resolved to numbers.

    Attributes:
        waves: as the operator gave them: counts or percentages of the devices, cumulative.
        ends: how many devices, of those that take part, are asked after each wave, growing.
        max_failures: more failed devices than this halt the rollout.
        timeout_s: within this a device must serve the new version, confirmed; its canary is not
            counted.
        warnings: what an operator should know before it goes on, in sentences.
    """

    model: ModelName
    version: ModelVersion
    waves: tuple[str, ...]
    ends: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]
    max_failures: Annotated[int, msgspec.Meta(ge=0)] = 0
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    site: str | None = None
    warnings: tuple[str, ...] = ()


class Wave(msgspec.Struct, frozen=True):
    """Ask the devices at positions `first` (included) to `end` (excluded)."""

    number: int
    first: int
    end: int


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do until a device reports or its time is over."""

    reason: str


class Halt(msgspec.Struct, frozen=True):
    """Stop, and give devices back what they had."""

    reason: str


class Done(msgspec.Struct, frozen=True):
    """Every wave was asked and has answered."""


Step = Wave | Wait | Halt | Done


class Verdict(msgspec.Struct, frozen=True):
    """How one device fares.

    Attributes:
        in_canary: whether it compares the bundle on its live inputs now. That takes hours where
            inputs are rare; the device has a limit of its own, and says what came of it.
    """

    outcome: Outcome
    reason: str = ""
    in_canary: bool = False


def ends_of(waves: Sequence[str], *, devices: int) -> tuple[int, ...]:
    """How many of `devices` are asked after each wave.

    A wave is a count (`3`) or a percentage (`50%`, rounded up) of the devices, cumulative: `1`,
    `50%`, `100%` asks one device, then half of the fleet, then all. A wave that adds no device to
    the one before is left out; one that asks for fewer is a `UsageError`.
    """
    if not waves:
        raise UsageError("a rollout needs at least one wave", hint="for example --wave 100%")
    ends: list[int] = []
    for wave in waves:
        end = _end(wave, devices=devices)
        if ends and end < ends[-1]:
            raise UsageError(
                f"wave {wave} asks for {end} devices, fewer than the wave before ({ends[-1]})",
                hint="waves are cumulative: --wave 1 --wave 50% --wave 100%",
            )
        if end > 0 and (not ends or end > ends[-1]):
            ends.append(end)
    return tuple(ends)


def next_step(plan: Plan, outcomes: Sequence[Outcome]) -> Step:
    """Choose what a rollout does next.

    Args:
        plan: the waves and limits.
        outcomes: of the devices that take part, in their order. They are asked in order, so those
            `waiting` come last. Since the plan was made some may have left.
    """
    if not outcomes:
        return Halt("no device is left: every one was revoked")
    failed = outcomes.count("failed")
    if failed > plan.max_failures:
        return Halt(f"{failed} failed, {plan.max_failures} allowed")
    moving = outcomes.count("moving")
    if moving:
        return Wait(f"{moving} still moving")
    asked = len(outcomes) - outcomes.count("waiting")
    ends = [min(end, len(outcomes)) for end in plan.ends]
    first = max((end for end in ends if end < asked), default=0)
    latest = outcomes[first:asked]
    if asked and "moved" not in latest:
        # Late devices alone prove nothing about the bundle, so no wave may rest on them.
        if "failed" in latest:
            return Halt(f"no device of the latest wave moved, {latest.count('failed')} failed")
        if asked < ends[-1] or "moved" not in outcomes:
            return Wait(f"every device of the latest wave is offline ({len(latest)})")
    for number, end in enumerate(ends, start=1):
        if end > asked:
            return Wave(number, asked, end)
    return Done()


def wave_of(plan: Plan, place: int) -> int | None:
    """The number of the wave that asks the device at a place; `None` where none does."""
    numbers = enumerate(plan.ends, start=1)
    return next((number for number, end in numbers if place < end), None)


def judge(
    state: ModelState,
    *,
    digest: str,
    taken: bool,
    online: bool,
    waited_s: float,
    timeout_s: float,
    failed_before: bool = False,
) -> Verdict:
    """How a device that was asked fares.

    Args:
        state: what it reported of the model.
        digest: of the bundle it shall serve.
        taken: whether it has reported the desired state by which it was asked.
        online: whether it is connected.
        waited_s: since it was asked, or since its time began anew (`begins_anew`).
        timeout_s: how long it may take.
        failed_before: whether it had failed with this very bundle when it was asked; its first
            words then may still be of that failure, and count only after `OLD_NEWS_S`.

    A device that was never reached is `late`, not failed: it moves when it comes back. One that
    was reached and fell silent has failed, for the new bundle may be why.
    """
    if taken and state.digest == digest and state.state in ("confirmed", "idle"):
        return Verdict("moved")
    old_news = failed_before and waited_s < OLD_NEWS_S
    if taken and not old_news and has_failed(state, digest=digest):
        return Verdict("failed", state.detail or state.reason or state.state)
    in_canary = taken and online and state.state == "canary" and state.target_digest == digest
    if waited_s < timeout_s or in_canary:
        return Verdict("moving", in_canary=in_canary)
    if not taken and not online:
        return Verdict("late", f"offline for {waited_s:.0f} s")
    share = "" if state.progress is None else f" at {int(state.progress * 100)} %"
    was = f"was {state.state}{share}" if taken else "the request was not taken"
    silent = "" if online else ", now offline"
    return Verdict("failed", f"timeout: not confirmed within {timeout_s:g} s ({was}{silent})")


def begins_anew(*, waited_s: float, timeout_s: float) -> bool:
    """Whether the time of a device that is in its canary begins anew now.

    Not at every look, for each writes to the disk: after its canary a device has nine tenths of
    its time at least.
    """
    return waited_s >= timeout_s / 10


def leaves(outcome: Outcome) -> bool:
    """Whether a device that is revoked leaves its rollout; what it answered before stands."""
    return outcome in ("waiting", "moving", "late")


def at_end(outcome: Outcome, reason: str, *, given_back: bool) -> Verdict:
    """What is true of a device once its rollout was halted or aborted.

    Args:
        given_back: whether it was told to serve what it had before.
    """
    if outcome == "waiting":
        return Verdict("unasked")
    if outcome not in ("moving", "moved"):
        return Verdict(outcome, reason)
    then = "given back what it had" if given_back else "something else is wanted of it by now"
    return Verdict("stopped" if outcome == "moving" else "moved", then)


def has_failed(state: ModelState, *, digest: str) -> bool:
    """Whether a device's latest update was to this bundle and did not stay."""
    return state.target_digest == digest and state.state in ("failed", "rolled_back")


def check_move(now: State, then: State, *, rollout: int) -> None:
    """Refuse a move that the table of states does not allow."""
    if then not in MOVES[now]:
        allowed = ", ".join(sorted(MOVES[now])) or "nothing, it has ended"
        raise FleetError(
            f"rollout {rollout} is {now} and cannot become {then}", hint=f"allowed: {allowed}"
        )


def _end(wave: str, *, devices: int) -> int:
    match = _SIZE.fullmatch(wave)
    if match is None or (match[2] and int(match[1]) > 100):
        raise UsageError(
            f"{wave!r} is not a wave", hint="write a count (3) or a percentage up to 100% (50%)"
        )
    size = int(match[1])
    return -(-devices * size // 100) if match[2] else min(size, devices)
