"""Rollouts: the thin shell around the rules; every step is on disk before a device hears of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec
import sqlalchemy as sa

from edgekit.clock import Clock
from edgekit.errors import FleetError
from edgekit.fleet import desired, inventory, repository, rights, rollout, rollout_choice, store
from edgekit.fleet.inventory import Device
from edgekit.fleet.repository import Published
from edgekit.fleet.rollout import Plan, State, Verdict
from edgekit.fleet.store import Store, UnknownId
from edgekit.manifest import ModelName, ModelVersion
from edgekit.messages import Wanted
from edgekit.structs import Strict

ENDED: tuple[State, ...] = ("halted", "done", "aborted")


class Request(Strict, frozen=True, kw_only=True):
    """What an operator asks for; `devices` and `site` narrow the fleet."""

    model: ModelName
    version: ModelVersion
    waves: tuple[str, ...] = rollout.DEFAULT_WAVES
    max_failures: Annotated[int, msgspec.Meta(ge=0)] = 0
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    site: str | None = None
    devices: tuple[str, ...] = ()


class Rollouts:
    """Creates rollouts and carries them on.

    Args:
        release_key: tells the id of the key whose releases devices trust that enrol now; `None`
            where none enrols.
    """

    def __init__(
        self, *, store: Store, clock: Clock, release_key: Callable[[], str] | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._release_key = release_key

    def create(self, request: Request) -> int:
        """Begin a rollout and return its id; its first wave is asked at the next `step`.

        Raises:
            FleetError: no such bundle, no device for it, or another rollout is under way.
        """
        now_ms = self._clock.now_ms()
        with self._store.write() as connection:
            bundles = repository.by_profile(connection, name=request.model, version=request.version)
            if not bundles:
                raise UnknownId(
                    f"{request.model} {request.version} is not published",
                    hint="edgekit publish BUNDLE puts it into the repository",
                )
            chosen = rollout_choice.choose(connection, site=request.site, named=request.devices)
            rollout_choice.check_free(connection, request.model, chosen)
            able = [device for device in chosen if device.profile in bundles]
            if not able:
                raise FleetError(
                    f"no device can take {request.model} {request.version}: it is published for "
                    f"{', '.join(sorted(bundles))}, and {rollout_choice.told(chosen)}",
                    hint="edgekit fleet devices shows the profile of each device",
                )
            plan = Plan(
                model=request.model,
                version=request.version,
                waves=request.waves,
                ends=rollout.ends_of(request.waves, devices=len(able)),
                max_failures=request.max_failures,
                timeout_s=request.timeout_s,
                site=request.site,
                warnings=self._warnings(able, bundles),
            )
            number = _insert(connection, plan, now_ms=now_ms)
            rows = _device_rows(number, chosen, bundles)
            connection.execute(store.rollout_devices.insert(), rows)
            _log(connection, "create rollout", number, plan, now_ms=now_ms)
        return number

    def step(self) -> None:
        """Carry on every rollout that has not ended."""
        with self._store.read() as connection:
            table = store.rollouts
            query = sa.select(table.c.id).where(table.c.state.in_(("running", "paused")))
            open_ones = connection.scalars(query.order_by(table.c.id)).all()
        for number in open_ones:
            with self._store.write() as connection:
                self._step(connection, number)

    def pause(self, number: int) -> None:
        """Ask no further wave; devices that were asked go on."""
        self._move(number, "paused")

    def resume(self, number: int) -> None:
        """Carry on a paused rollout."""
        self._move(number, "running")

    def abort(self, number: int) -> None:
        """End a rollout and give every device that was asked what it had before."""
        self._move(number, "aborted", reason="aborted by an operator")

    def _warnings(
        self, able: Sequence[Device], bundles: Mapping[str, Published]
    ) -> tuple[str, ...]:
        if self._release_key is None:
            return ()
        taken = [bundles[profile] for profile in rollout_choice.profiles_of(able)]
        return rollout_choice.warnings(taken, release_key=self._release_key())

    def _move(self, number: int, state: State, *, reason: str = "") -> None:
        now_ms = self._clock.now_ms()
        with self._store.write() as connection:
            row = row_of(connection, number)
            rollout.check_move(row["state"], state, rollout=number)
            if state == "aborted":
                _wind_up(connection, number, plan_of(row).model, now_ms=now_ms)
            _set_state(connection, number, state, reason, now_ms=now_ms)
            _log(connection, f"rollout {state}", number, reason, now_ms=now_ms)

    def _step(self, connection: sa.Connection, number: int) -> None:
        row = row_of(connection, number)
        if row["state"] in ENDED:
            return
        now_ms = self._clock.now_ms()
        plan = plan_of(row)
        rows = _participants(connection, number)
        for position, device in _unsettled(connection, rows):
            found = rows[position]
            waited_s = (now_ms - found["asked_ms"]) / 1000
            verdict = _judge(found, device, plan, waited_s=waited_s)
            rows[position] = _note(connection, found, verdict)
            if verdict.in_canary and rollout.begins_anew(
                waited_s=waited_s, timeout_s=plan.timeout_s
            ):
                connection.execute(_member(found).values(asked_ms=now_ms))
        step = rollout.next_step(plan, [found["outcome"] for found in rows])
        if isinstance(step, rollout.Halt):
            _wind_up(connection, number, plan.model, now_ms=now_ms)
            _set_state(connection, number, "halted", step.reason, now_ms=now_ms)
            _log(connection, "rollout halted", number, step.reason, now_ms=now_ms)
        elif row["state"] == "paused":
            return
        elif isinstance(step, rollout.Wave):
            _ask(connection, plan, rows[step.first : step.end], now_ms=now_ms)
            _set_state(connection, number, "running", f"wave {step.number}", now_ms=now_ms)
        elif isinstance(step, rollout.Wait):
            if row["reason"] != step.reason:
                _set_state(connection, number, "running", step.reason, now_ms=now_ms)
        else:
            _set_state(connection, number, "done", "", now_ms=now_ms)
            _log(connection, "rollout done", number, "", now_ms=now_ms)


def _insert(connection: sa.Connection, plan: Plan, *, now_ms: int) -> int:
    inserted = connection.execute(
        store.rollouts.insert().values(
            plan=store.to_json(plan),
            state="running",
            reason="",
            created_ms=now_ms,
            updated_ms=now_ms,
        )
    )
    assert inserted.inserted_primary_key is not None
    number: int = inserted.inserted_primary_key[0]
    return number


def _device_rows(
    number: int, chosen: Sequence[Device], bundles: dict[str, Published]
) -> list[dict[str, object]]:
    able = [device for device in chosen if device.profile in bundles]
    skipped = [device for device in chosen if device.profile not in bundles]
    rows = []
    for position, device in enumerate([*able, *skipped]):
        found = bundles.get(device.profile)
        reason = f"no bundle for its profile {device.profile or '(unknown)'}"
        rows.append(
            {
                "rollout": number,
                "device": device.device,
                "position": position,
                "wanted": store.to_json(found.wanted()) if found else None,
                "outcome": "waiting" if found else "skipped",
                "reason": "" if found else reason,
            }
        )
    return rows


def _unsettled(connection: sa.Connection, rows: Sequence[store.Row]) -> list[tuple[int, Device]]:
    """Positions and devices that were asked and do not serve the new version yet."""
    open_ones = {
        row["device"]: position
        for position, row in enumerate(rows)
        if row["outcome"] not in ("waiting", "moved")
    }
    found = inventory.named(connection, list(open_ones))
    return [(open_ones[name], device) for name, device in found.items()]


def _judge(found: store.Row, device: Device, plan: Plan, *, waited_s: float) -> Verdict:
    serial = device.reported.serial if device.reported else 0
    return rollout.judge(
        device.state_of(plan.model),
        digest=store.from_json(found["wanted"], Wanted).digest,
        taken=serial >= found["serial"],
        online=device.online,
        waited_s=waited_s,
        timeout_s=plan.timeout_s,
        failed_before=found["failed_before"],
    )


def _ask(connection: sa.Connection, plan: Plan, rows: Sequence[store.Row], *, now_ms: int) -> None:
    for found in rows:
        device = inventory.find(connection, found["device"])
        before = desired.models_of(connection, device.device).get(plan.model)
        if before is None:
            # Installed by other means; if we publish the same bundle, it can come back.
            served = repository.by_digest(connection, device.state_of(plan.model).digest)
            before = served.wanted() if served else None
        wanted = store.from_json(found["wanted"], Wanted)
        serial = desired.assign(connection, device, model=plan.model, wanted=wanted, now_ms=now_ms)
        connection.execute(
            _member(found).values(
                previous=store.to_json(before) if before else None,
                serial=serial,
                asked_ms=now_ms,
                outcome="moving",
                failed_before=rollout.has_failed(device.state_of(plan.model), digest=wanted.digest),
            )
        )


def _wind_up(connection: sa.Connection, number: int, model: str, *, now_ms: int) -> None:
    """Give devices back what they had, and note what is true of each from now on."""
    for found in every_row(connection, number):
        given_back = found["serial"] is not None and _give_back(
            connection, found, model, now_ms=now_ms
        )
        verdict = rollout.at_end(found["outcome"], found["reason"], given_back=given_back)
        _note(connection, found, verdict)


def _give_back(connection: sa.Connection, found: store.Row, model: str, *, now_ms: int) -> bool:
    """Want of a device what it had, unless somebody wants something else of it by now.

    A device that was revoked too: enrolled anew, it would be told what is wanted last.
    """
    wanted = store.from_json(found["wanted"], Wanted)
    if desired.models_of(connection, found["device"]).get(model) != wanted:
        return False
    previous = store.from_json(found["previous"], Wanted) if found["previous"] else None
    device = inventory.find(connection, found["device"])
    desired.assign(connection, device, model=model, wanted=previous, now_ms=now_ms)
    return True


def row_of(connection: sa.Connection, number: int) -> store.Row:
    query = sa.select(store.rollouts).where(store.rollouts.c.id == number)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise UnknownId(f"there is no rollout {number}", hint="edgekit rollout list shows them")
    return row


def every_row(connection: sa.Connection, number: int) -> list[store.Row]:
    table = store.rollout_devices
    query = sa.select(table).where(table.c.rollout == number).order_by(table.c.position)
    return list(connection.execute(query).mappings().all())


def _participants(connection: sa.Connection, number: int) -> list[store.Row]:
    """The devices that take part, in their order; those that were revoked by now leave."""
    revoked = rights.revoked(connection)
    rows = []
    for row in every_row(connection, number):
        found = row
        if row["device"] in revoked and rollout.leaves(row["outcome"]):
            found = _note(connection, row, Verdict("revoked", "before it answered"))
        rows.append(found)
    return [row for row in rows if row["outcome"] not in rollout.NO_PART]


def _member(found: store.Row) -> sa.Update:
    table = store.rollout_devices
    return table.update().where(
        table.c.rollout == found["rollout"], table.c.device == found["device"]
    )


def _note(connection: sa.Connection, found: store.Row, verdict: Verdict) -> store.Row:
    if (verdict.outcome, verdict.reason) == (found["outcome"], found["reason"]):
        return found
    change = _member(found).values(outcome=verdict.outcome, reason=verdict.reason)
    return connection.execute(change.returning(*store.rollout_devices.columns)).mappings().one()


def plan_of(row: store.Row) -> Plan:
    return store.from_json(row["plan"], Plan)


def _set_state(
    connection: sa.Connection, number: int, state: State, reason: str, *, now_ms: int
) -> None:
    change = store.rollouts.update().where(store.rollouts.c.id == number)
    connection.execute(change.values(state=state, reason=reason, updated_ms=now_ms))


def _log(
    connection: sa.Connection, action: str, number: int, detail: object, *, now_ms: int
) -> None:
    store.log_action(
        connection, at_ms=now_ms, action=action, subject=f"rollout {number}", detail=detail
    )
