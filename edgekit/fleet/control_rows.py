"""Commands in the store: who asked what of which device, when, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import sqlalchemy as sa

from edgekit import control
from edgekit.control import MAX_TTL_S, Command, CommandResult, Kind, Value
from edgekit.errors import FleetError
from edgekit.fleet import inventory, store
from edgekit.fleet.control_rules import OPEN, Open, State
from edgekit.fleet.store import UnknownId

MOST_OPEN = 16
Args = dict[str, Value]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator asks.

    Attributes:
        device: `SITE/ID`, or the id alone where no two sites share it.
        ttl_s: how long it counts; a device that is offline gets it when it is back within that.
        limit_s: longest that it may run; the device's own limit holds as well.
        by: who asks.
    """

    device: str
    kind: Kind
    args: Args = {}
    ttl_s: Annotated[float, msgspec.Meta(ge=1, le=MAX_TTL_S)] = 3600.0
    limit_s: Annotated[float, msgspec.Meta(gt=0, le=600)] | None = None
    by: Annotated[str, msgspec.Meta(max_length=200)] = ""


class CommandView(msgspec.Struct, frozen=True, kw_only=True):
    """A command as the API shows it; `output` only where a single one is asked for."""

    id: str
    device: str
    kind: str
    args: Args
    by: str
    state: State
    reason: str | None
    detail: str
    issued_ms: int
    expires_ms: int
    sent_ms: int | None
    answered_ms: int | None
    took_ms: int | None
    output: dict[str, Any] | None = None


def create(connection: sa.Connection, request: Request, *, number: str, now_ms: int) -> str:
    """Keep a command until its device is there, and note who asked; the device's full name.

    Raises:
        UsageError: an argument is wrong.
        UnknownId: no device of that name has reported yet.
        FleetError: the device was revoked, or too many wait for it.
    """
    control.arguments(request.kind, request.args)
    device = inventory.find_enrolled(connection, request.device).device
    table = store.commands
    of_device = sa.select(sa.func.count()).where(table.c.device == device)
    waiting = connection.scalar(of_device.where(table.c.state.in_(OPEN)))
    if waiting is not None and waiting >= MOST_OPEN:
        raise FleetError(
            f"{waiting} commands wait for {device} already",
            hint="edgekit fleet commands lists them; they go when they expire",
        )
    row = {
        "id": number,
        "device": device,
        "counter": _next_counter(connection, device, now_ms=now_ms),
        "kind": request.kind,
        "args": store.to_json(request.args),
        "by": request.by,
        "limit_s": request.limit_s,
        "issued_ms": now_ms,
        "expires_ms": now_ms + round(request.ttl_s * 1000),
        "state": "waiting",
        "detail": "",
    }
    connection.execute(table.insert().values(row))
    detail = {"id": number, "kind": request.kind, "args": request.args, "by": request.by}
    store.log_action(connection, at_ms=now_ms, action="command", subject=device, detail=detail)
    return device


def open_commands(connection: sa.Connection) -> list[Open]:
    """What has not come to an end, in the order of each device's numbers."""
    table, devices = store.commands, store.devices
    columns = (table.c.id, table.c.device, table.c.state, table.c.expires_ms)
    query = (
        sa.select(*columns, devices.c.online, devices.c.boot)
        .join(devices, devices.c.device == table.c.device)
        .where(table.c.state.in_(OPEN))
        .order_by(table.c.device, table.c.counter)
    )
    return [Open(**row) for row in connection.execute(query).mappings()]


def message(connection: sa.Connection, number: str, *, boot: str, challenge: str | None) -> Command:
    """A command as it is sent now, for this start of its device."""
    row = _row(connection, number)
    return Command(
        id=number,
        device=row["device"],
        counter=row["counter"],
        boot=boot,
        challenge=challenge,
        issued_at=row["issued_ms"],
        expires_at=row["expires_ms"],
        kind=row["kind"],
        args=store.from_json(row["args"], Args),
        limit_s=row["limit_s"],
        by=row["by"],
    )


def mark_sent(connection: sa.Connection, number: str, *, now_ms: int) -> None:
    """From now on it may have run."""
    table = store.commands
    where = (table.c.id == number, table.c.state == "waiting")
    connection.execute(table.update().where(*where).values(state="sent", sent_ms=now_ms))


def settle(
    connection: sa.Connection,
    number: str,
    state: State,
    *,
    now_ms: int,
    result: CommandResult | None = None,
    output: dict[str, Any] | None = None,
    detail: str = "",
) -> None:
    """Keep a state and what brought it about; an end is noted in the audit."""
    values: dict[str, Any] = {"state": state, "detail": detail}
    if result is not None:
        values |= {"reason": result.reason, "detail": result.detail, "took_ms": result.took_ms}
    if state not in OPEN:
        values["answered_ms"] = now_ms
        values["output"] = store.to_json(output) if output is not None else None
    table = store.commands
    connection.execute(table.update().where(table.c.id == number).values(values))
    if state not in OPEN:
        subject = _row(connection, number)["device"]
        told = {"id": number, "state": state, "reason": values.get("reason")}
        store.log_action(
            connection, at_ms=now_ms, action="command_ended", subject=subject, detail=told
        )


def find(connection: sa.Connection, number: str) -> CommandView:
    """One command with its output, raising `UnknownId`."""
    return _view(_row(connection, number), whole=True)


def latest(
    connection: sa.Connection, *, device: str | None = None, limit: int
) -> list[CommandView]:
    """The latest commands, the newest first, of one device if one is named."""
    table = store.commands
    columns = [column for column in table.c if column.name != "output"]
    query = sa.select(*columns).order_by(table.c.issued_ms.desc(), table.c.counter.desc())
    if device is not None:
        query = query.where(table.c.device == inventory.find(connection, device).device)
    rows = connection.execute(query.limit(limit)).mappings()
    return [_view(row, whole=False) for row in rows]


def prune(connection: sa.Connection, *, before_ms: int) -> int:
    """Forget commands that ended before a time; of each device the last stays, for its number."""
    table = store.commands
    other = table.alias()
    last = sa.select(sa.func.max(other.c.counter)).where(other.c.device == table.c.device)
    done = sa.delete(table).where(
        table.c.state.not_in(OPEN),
        table.c.expires_ms < before_ms,
        table.c.counter < last.scalar_subquery(),
    )
    return connection.execute(done).rowcount


def _next_counter(connection: sa.Connection, device: str, *, now_ms: int) -> int:
    """Above every one before it; by the clock, so that a store begun anew goes on above too."""
    column = store.commands.c.counter
    query = sa.select(sa.func.max(column)).where(store.commands.c.device == device)
    return max((connection.scalar(query) or 0) + 1, now_ms)


def _row(connection: sa.Connection, number: str) -> store.Row:
    query = sa.select(store.commands).where(store.commands.c.id == number)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise UnknownId(f"there is no command {number!r}", hint="edgekit fleet commands lists them")
    return row


def _view(row: store.Row, *, whole: bool) -> CommandView:
    output = row["output"] if whole else None
    return CommandView(
        id=row["id"],
        device=row["device"],
        kind=row["kind"],
        args=store.from_json(row["args"], Args),
        by=row["by"],
        state=row["state"],
        reason=row["reason"],
        detail=row["detail"],
        issued_ms=row["issued_ms"],
        expires_ms=row["expires_ms"],
        sent_ms=row["sent_ms"],
        answered_ms=row["answered_ms"],
        took_ms=row["took_ms"],
        output=store.from_json(output, dict[str, Any]) if output else None,
    )
