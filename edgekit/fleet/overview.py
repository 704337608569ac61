"""Overview: what the dashboard shows, as one document, made at most once a second for everyone."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Annotated

import msgspec
import sqlalchemy as sa

from edgekit.clock import SystemClock
from edgekit.errors import UsageError
from edgekit.fleet import inventory, repository, rollout_views, series, store, telemetry
from edgekit.fleet.coordinator import Coordinator
from edgekit.fleet.ingest import Counts
from edgekit.fleet.inventory import DeviceView
from edgekit.fleet.repository import Published
from edgekit.fleet.rollout_views import RolloutView
from edgekit.fleet.series import SeriesView
from edgekit.fleet.telemetry import VariantView
from edgekit.structs import Strict

LIST_LIMIT = 50
SHOWN_DEVICES = 500
WINDOW_MINUTES = 15
_MAX_AGE_S = 1.0


class EventQuery(Strict, frozen=True, kw_only=True):
    """Which events are asked for, the newest first: of one device, of one kind, at most `limit`."""

    device: str | None = None
    kind: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = LIST_LIMIT

    @classmethod
    def parse(cls, asked: Mapping[str, str]) -> EventQuery:
        """Read the query of a URL, raising `UsageError` that names the wrong part."""
        try:
            return msgspec.convert(dict(asked), cls, strict=False)
        except msgspec.ValidationError as e:
            raise UsageError(f"the query for events is not valid: {e}") from e


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """One event, for people."""

    id: int
    device: str
    at_ms: int
    received_ms: int
    kind: str
    level: str
    message: str
    facts: dict[str, str | int | float | bool | None]


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on the page. `devices` holds the first `SHOWN_DEVICES`; `online` of `known`.

    Devices that were revoked are neither shown nor counted.
    """

    sites: tuple[str, ...]
    broker: str
    connected: bool
    known: int
    online: int
    messages: Counts
    window_minutes: int
    devices: list[DeviceView]
    variants: list[VariantView]
    bundles: list[Published]
    rollouts: list[RolloutView]
    series: list[SeriesView]
    events: list[EventView]


class Overviews:
    """The latest overview as JSON."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._clock = SystemClock()
        self._lock = threading.Lock()
        self._made_s = float("-inf")
        self._current = b""

    def current(self) -> bytes:
        """The overview, at most a second old."""
        with self._lock:
            if self._clock.monotonic() - self._made_s >= _MAX_AGE_S:
                self._current = msgspec.json.encode(self._make())
                self._made_s = self._clock.monotonic()
            return self._current

    def _make(self) -> Overview:
        coordinator = self._coordinator
        from_ms = self._clock.now_ms() - WINDOW_MINUTES * 60_000
        with coordinator.store.read() as connection:
            known, online = count_devices(connection)
            devices = inventory.every(connection, limit=SHOWN_DEVICES, revoked=False)
            return Overview(
                sites=coordinator.settings.sites,
                broker=coordinator.settings.broker,
                connected=coordinator.connected,
                known=known,
                online=online,
                messages=coordinator.ingest.counts,
                window_minutes=WINDOW_MINUTES,
                devices=[inventory.view(device) for device in devices],
                variants=telemetry.since(connection, from_ms=from_ms),
                bundles=repository.every(connection)[:LIST_LIMIT],
                rollouts=rollout_views.latest(connection, limit=10),
                series=series.latest(connection, limit=5),
                events=events_of(connection, EventQuery()),
            )


def count_devices(connection: sa.Connection) -> tuple[int, int]:
    """How many devices are known, without those that were revoked, and how many are online."""
    table = store.devices
    enrolled = table.c.device.not_in(sa.select(store.revoked.c.device))
    query = sa.select(sa.func.count()).select_from(table).where(enrolled)
    known = connection.scalar(query)
    online = connection.scalar(query.where(table.c.online.is_(True)))
    return known or 0, online or 0


def events_of(connection: sa.Connection, asked: EventQuery) -> list[EventView]:
    """The latest events, the newest first, raising `UnknownId` for a device that is not known."""
    table = store.events
    query = sa.select(table).order_by(table.c.id.desc()).limit(asked.limit)
    if asked.device is not None:
        query = query.where(table.c.device == inventory.find(connection, asked.device).device)
    if asked.kind is not None:
        query = query.where(table.c.kind == asked.kind)
    return [
        EventView(**{**row, "facts": store.from_json(row["facts"], dict)})
        for row in connection.execute(query).mappings()
    ]
