"""Inventory: which devices there are, what they run and when they were last heard of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit import messages
from edgekit.errors import FleetError, UsageError
from edgekit.fleet import histogram, store
from edgekit.messages import Counted, Message, ModelState, Reported, Status, Telemetry

_LOOKUP_LENGTH = 500


def key(site: str, device_id: str) -> str:
    """The name of a device across sites: `SITE/ID`."""
    return f"{site}/{device_id}"


def split(device: str) -> tuple[str, str]:
    """Site and id of a device."""
    site, _, device_id = device.partition("/")
    return site, device_id


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device as the coordinator knows it.

    Attributes:
        device: `SITE/ID`.
        online: what the broker said last: its status, or its last will.
        revoked: whether it has no rights in the fleet any more; it is never online then.
        software: version of edgekit on the device.
        reported: its latest `state/reported`, if there was one.
        telemetry: its latest `telemetry`, if there was one.
    """

    device: str
    online: bool
    revoked: bool
    boot: str
    profile: str
    software: str
    first_seen_ms: int
    last_seen_ms: int
    reported: Reported | None
    telemetry: Telemetry | None

    @property
    def site(self) -> str:
        return split(self.device)[0]

    @property
    def id(self) -> str:
        return split(self.device)[1]

    def state_of(self, model: str) -> ModelState:
        """Where the device is with a model; `idle` where it never said."""
        known = self.reported.models if self.reported else {}
        return known.get(model, ModelState())

    def trains(self, model: str, *, base: str) -> bool:
        """Whether the device can take part in a round of a model on the bundle `base` now."""
        can = self.online and self.reported is not None and model in self.reported.trains
        return can and self.state_of(model).digest == base


class Changes:
    """What a batch of messages changes in the inventory; the last word of each device counts."""

    def __init__(self, *, now_ms: int) -> None:
        self._now_ms = now_ms
        self._births: dict[str, dict[str, Any]] = {}
        self._deaths: dict[str, dict[str, Any]] = {}
        self._reported: dict[str, dict[str, Any]] = {}
        self._telemetry: dict[str, dict[str, Any]] = {}
        self._heard: dict[str, dict[str, Any]] = {}

    @property
    def states(self) -> bool:
        """Whether a status or a reported state is among the changes."""
        return bool(self._births or self._deaths or self._reported)

    def add(self, device: str, body: Message) -> None:
        if isinstance(body, Status):
            self._add_status(device, body)
        elif isinstance(body, Reported):
            self._reported[device] = self._row(device, reported=store.to_json(body))
        elif isinstance(body, Telemetry):
            self._telemetry[device] = self._row(device, telemetry=store.to_json(body))
        elif isinstance(body, Counted):
            self._heard[device] = self._row(device)

    def write(self, connection: sa.Connection) -> None:
        about = ["online", "boot", "profile", "software", "last_seen_ms"]
        for rows, columns in (
            (self._births, about),
            (self._deaths, ["online"]),
            (self._reported, ["reported"]),
            (self._telemetry, ["telemetry", "last_seen_ms"]),
            (self._heard, ["last_seen_ms"]),
        ):
            store.upsert(connection, store.devices, list(rows.values()), replace=columns)

    def _add_status(self, device: str, status: Status) -> None:
        if status.online:
            self._deaths.pop(device, None)
            self._births[device] = self._row(
                device,
                online=True,
                boot=status.boot,
                profile=status.profile,
                software=status.version,
            )
        else:
            # A last will may be old news, retained; it is no sign of life, and names no profile.
            self._births.pop(device, None)
            self._deaths[device] = self._row(device, online=False, boot=status.boot)

    def _row(self, device: str, **columns: Any) -> dict[str, Any]:
        row = {"device": device, "first_seen_ms": self._now_ms, "last_seen_ms": self._now_ms}
        return row | columns


def every(
    connection: sa.Connection,
    *,
    site: str | None = None,
    limit: int | None = None,
    revoked: bool = True,
) -> list[Device]:
    """All devices, of one site if one is named, in the order of their names.

    Args:
        limit: at most so many.
        revoked: also those that have no rights any more.
    """
    query = _devices().order_by(store.devices.c.device).limit(limit)
    if not revoked:
        query = query.where(store.revoked.c.device.is_(None))
    if site is not None:
        query = query.where(store.devices.c.device.startswith(f"{site}/", autoescape=True))
    return [_device(row) for row in connection.execute(query).mappings()]


def find(connection: sa.Connection, name: str) -> Device:
    """One device by `SITE/ID`, or by id alone where no two sites share it."""
    column = store.devices.c.device
    match = column == name if "/" in name else column.endswith(f"/{name}", autoescape=True)
    rows = connection.execute(_devices().where(match)).mappings().all()
    if not rows:
        raise store.UnknownId(
            f"no device called {name!r} has reported yet", hint="edgekit fleet devices lists them"
        )
    if len(rows) > 1:
        raise UsageError(
            f"{name!r} is a device of several sites: {', '.join(row['device'] for row in rows)}",
            hint="name it as SITE/ID",
        )
    return _device(rows[0])


def find_enrolled(connection: sa.Connection, name: str) -> Device:
    """As `find`, raising `FleetError` for a device that was revoked."""
    device = find(connection, name)
    if device.revoked:
        raise FleetError(
            f"{device.device} was revoked, and does nothing for this fleet any more",
            hint=f"edgekit fleet token DIR {device.device} lets it enrol anew",
        )
    return device


def named(connection: sa.Connection, names: Sequence[str]) -> dict[str, Device]:
    """Devices by `SITE/ID`, in one look-up for many."""
    found: dict[str, Device] = {}
    for start in range(0, len(names), _LOOKUP_LENGTH):
        some = names[start : start + _LOOKUP_LENGTH]
        query = _devices().where(store.devices.c.device.in_(some))
        for row in connection.execute(query).mappings():
            found[row["device"]] = _device(row)
    return found


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a device, for people: where it is, and its load in the last telemetry.

    Attributes:
        requests_per_s: `None` without telemetry.
        p50_ms: upper edge of the histogram's bucket, see `histogram.quantile_ms`.
    """

    state: ModelState
    requests_per_s: float | None
    errors: int | None
    p50_ms: float | None
    p99_ms: float | None


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device, for people: what the API and the dashboard show."""

    device: str
    site: str
    id: str
    online: bool
    revoked: bool
    profile: str
    software: str
    first_seen_ms: int
    last_seen_ms: int
    models: dict[str, ModelView]
    trains: tuple[str, ...]
    temperature_c: float | None
    memory_free_bytes: int | None
    rss_bytes: int | None


def view(device: Device) -> DeviceView:
    """What there is to show of a device."""
    telemetry, reported = device.telemetry, device.reported
    names = {*(reported.models if reported else ()), *(f.model for f in _figures(device))}
    resources = telemetry.resources if telemetry else None
    return DeviceView(
        device=device.device,
        site=device.site,
        id=device.id,
        online=device.online,
        revoked=device.revoked,
        profile=device.profile,
        software=device.software,
        first_seen_ms=device.first_seen_ms,
        last_seen_ms=device.last_seen_ms,
        models={name: _model_view(device, name) for name in sorted(names)},
        trains=reported.trains if reported else (),
        temperature_c=resources.temperature_c if resources else None,
        memory_free_bytes=resources.memory_free_bytes if resources else None,
        rss_bytes=resources.rss_bytes if resources else None,
    )


def _model_view(device: Device, model: str) -> ModelView:
    figures = [item for item in _figures(device) if item.model == model]
    latency = histogram.add(*(item.latency_us for item in figures))
    telemetry = device.telemetry
    rate = None
    if telemetry is not None and telemetry.period_s > 0:
        rate = sum(item.requests for item in figures) / telemetry.period_s
    return ModelView(
        state=device.state_of(model),
        requests_per_s=rate,
        errors=sum(item.errors for item in figures) if telemetry else None,
        p50_ms=histogram.quantile_ms(latency, 0.5),
        p99_ms=histogram.quantile_ms(latency, 0.99),
    )


def _figures(device: Device) -> Sequence[messages.ModelFigures]:
    return device.telemetry.models if device.telemetry else ()


def _devices() -> sa.Select[Any]:
    gone = store.revoked
    joined = store.devices.outerjoin(gone, gone.c.device == store.devices.c.device)
    return sa.select(store.devices, gone.c.device.is_not(None).label("revoked")).select_from(joined)


def _device(row: store.Row) -> Device:
    reported, telemetry = row["reported"], row["telemetry"]
    return Device(
        device=row["device"],
        # A word that was on its way when the rights were taken may have been stored after that.
        online=row["online"] and not row["revoked"],
        revoked=row["revoked"],
        boot=row["boot"],
        profile=row["profile"],
        software=row["software"],
        first_seen_ms=row["first_seen_ms"],
        last_seen_ms=row["last_seen_ms"],
        reported=store.from_json(reported, Reported) if reported else None,
        telemetry=store.from_json(telemetry, Telemetry) if telemetry else None,
    )
