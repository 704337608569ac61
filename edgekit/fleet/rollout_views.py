"""Rollouts as people see them: waves as progress, devices with their outcome and reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import sqlalchemy as sa

from edgekit.fleet import inventory, rollout, rollouts, store
from edgekit.fleet.inventory import Device
from edgekit.fleet.rollout import Outcome, Plan, State
from edgekit.messages import UpdateState

_CANARIES: Mapping[str, Literal["promoted", "undecided"]] = {
    "canary_passed": "promoted",
    "canary_undecided": "undecided",
}


class CanaryEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a canary ended after which the version serves; `detail` is the device's word for it."""

    outcome: Literal["promoted", "undecided"]
    detail: str


class DeviceProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a rollout, for people.

    Attributes:
        wave: `None` where it belongs to none.
        update: state of its latest update of the model, to version `target`.
        version: what serves.
        progress: of that state, 0 to 1, where the device tells and the update is this rollout's.
        figures: what its canary measured, by name.
        last_seen_ms: when it was last heard of; it is there now where it is `online`.
        canary: how its canary ended, where it told; `None` in a list of rollouts.
    """

    device: str
    wave: int | None
    outcome: Outcome
    reason: str
    update: UpdateState
    version: str | None
    target: str | None
    progress: float | None
    figures: dict[str, float]
    online: bool
    last_seen_ms: int
    canary: CanaryEnd | None


class WaveProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One wave, in numbers of devices."""

    number: int
    devices: int
    moved: int
    moving: int
    failed: int
    late: int


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout, for people."""

    id: int
    model: str
    version: str
    state: State
    reason: str
    max_failures: int
    timeout_s: float
    created_ms: int
    updated_ms: int
    warnings: tuple[str, ...]
    waves: tuple[WaveProgress, ...]
    devices: tuple[DeviceProgress, ...]


def view(connection: sa.Connection, number: int) -> RolloutView:
    """One rollout, with its waves and devices."""
    row = rollouts.row_of(connection, number)
    ends = _canaries(connection, rollouts.plan_of(row), since_ms=row["created_ms"])
    return _view(connection, row, ends)


def latest(connection: sa.Connection, *, limit: int) -> list[RolloutView]:
    """The latest rollouts, the newest first."""
    table = store.rollouts
    numbers = connection.scalars(sa.select(table.c.id).order_by(table.c.id.desc()).limit(limit))
    # Events are not looked through: the dashboard asks for this every second.
    return [_view(connection, rollouts.row_of(connection, number), {}) for number in numbers.all()]


def _view(connection: sa.Connection, row: store.Row, ends: Mapping[str, CanaryEnd]) -> RolloutView:
    number, plan = row["id"], rollouts.plan_of(row)
    rows = rollouts.every_row(connection, number)
    devices = inventory.named(connection, [found["device"] for found in rows])
    taking_part = [found["device"] for found in rows if found["outcome"] not in rollout.NO_PART]
    waves = {device: rollout.wave_of(plan, place) for place, device in enumerate(taking_part)}
    progress = [
        _progress(
            found,
            devices[found["device"]],
            plan,
            wave=waves.get(found["device"]),
            canary=ends.get(found["device"]),
        )
        for found in rows
    ]
    return RolloutView(
        id=number,
        model=plan.model,
        version=plan.version,
        state=row["state"],
        reason=row["reason"],
        max_failures=plan.max_failures,
        timeout_s=plan.timeout_s,
        created_ms=row["created_ms"],
        updated_ms=row["updated_ms"],
        warnings=plan.warnings,
        waves=tuple(_wave(number, progress) for number in range(1, len(plan.ends) + 1)),
        devices=tuple(progress),
    )


def _canaries(connection: sa.Connection, plan: Plan, *, since_ms: int) -> Mapping[str, CanaryEnd]:
    """How the canaries of a version ended by what devices told; of each the last."""
    table = store.events
    query = (
        sa.select(table)
        .where(table.c.kind.in_(_CANARIES), table.c.received_ms >= since_ms)
        .order_by(table.c.id)
    )
    found = {}
    for row in connection.execute(query).mappings():
        facts = store.from_json(row["facts"], dict)
        if (facts.get("model"), facts.get("version")) == (plan.model, plan.version):
            said = row["message"].removeprefix(f"{plan.model} {plan.version}: ")
            found[row["device"]] = CanaryEnd(outcome=_CANARIES[row["kind"]], detail=said)
    return found


def _progress(
    found: store.Row, device: Device, plan: Plan, *, wave: int | None, canary: CanaryEnd | None
) -> DeviceProgress:
    state = device.state_of(plan.model)
    # Of a later update, a rollout that is over has nothing to say.
    is_ours = state.target == plan.version
    return DeviceProgress(
        device=found["device"],
        wave=wave,
        outcome=found["outcome"],
        reason=found["reason"],
        update=state.state,
        version=state.version,
        target=state.target,
        progress=state.progress if is_ours else None,
        figures=state.figures if is_ours else {},
        online=device.online,
        last_seen_ms=device.last_seen_ms,
        canary=canary,
    )


def _wave(number: int, progress: Sequence[DeviceProgress]) -> WaveProgress:
    outcomes = [item.outcome for item in progress if item.wave == number]
    return WaveProgress(
        number=number,
        devices=len(outcomes),
        moved=outcomes.count("moved"),
        moving=outcomes.count("moving"),
        failed=outcomes.count("failed"),
        late=outcomes.count("late"),
    )
