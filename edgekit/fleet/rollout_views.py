"""Rollouts as people see them: waves as progress, devices with their outcome and reason."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from edgekit.fleet import inventory, rollout, rollouts, store
from edgekit.fleet.inventory import Device
from edgekit.fleet.rollout import Outcome, Plan, State
from edgekit.messages import UpdateState


class DeviceProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a rollout, for people; `wave` is `None` where it belongs to none."""

    device: str
    wave: int | None
    outcome: Outcome
    reason: str
    update: UpdateState
    version: str | None


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
    waves: tuple[WaveProgress, ...]
    devices: tuple[DeviceProgress, ...]


def view(connection: sa.Connection, number: int) -> RolloutView:
    """One rollout, with its waves and devices."""
    row = rollouts.row_of(connection, number)
    plan = rollouts.plan_of(row)
    rows = rollouts.every_row(connection, number)
    devices = inventory.named(connection, [found["device"] for found in rows])
    taking_part = [found["device"] for found in rows if found["outcome"] not in rollout.NO_PART]
    waves = {device: rollout.wave_of(plan, place) for place, device in enumerate(taking_part)}
    progress = [
        _progress(found, devices[found["device"]], plan, wave=waves.get(found["device"]))
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
        waves=tuple(_wave(number, progress) for number in range(1, len(plan.ends) + 1)),
        devices=tuple(progress),
    )


def latest(connection: sa.Connection, *, limit: int) -> list[RolloutView]:
    """The latest rollouts, the newest first."""
    table = store.rollouts
    numbers = connection.scalars(sa.select(table.c.id).order_by(table.c.id.desc()).limit(limit))
    return [view(connection, number) for number in numbers.all()]


def _progress(found: store.Row, device: Device, plan: Plan, *, wave: int | None) -> DeviceProgress:
    state = device.state_of(plan.model)
    return DeviceProgress(
        device=found["device"],
        wave=wave,
        outcome=found["outcome"],
        reason=found["reason"],
        update=state.state,
        version=state.version,
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
