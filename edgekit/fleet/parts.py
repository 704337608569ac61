"""Parts: what devices run on, their slots and their drift, told only where it changed.

A telemetry message names the message that told each part as it is now. A part is given out only
where that very message has come: what is not known is `None`, never what was known before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit.fleet import store
from edgekit.manifest import ModelName
from edgekit.messages import About, DriftFigures, ModelState, Part, Telemetry

_LOOKUP_LENGTH = 500

Row = store.Row | Mapping[str, Any]

parts = sa.Table(
    "parts",
    store.metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("part", sa.Text, primary_key=True),
    sa.Column("boot", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)


class PartsView(msgspec.Struct, frozen=True, kw_only=True):
    """What the latest telemetry of a device refers to; `None` for a part that is not known."""

    about: About | None = None
    slots: dict[ModelName, ModelState] | None = None
    drift: tuple[DriftFigures, ...] | None = None


class Told:
    """What a batch of telemetry tells; the last word of each device counts."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, device: str, telemetry: Telemetry) -> None:
        for part, seq in telemetry.told.items():
            if seq != telemetry.seq:
                continue
            row = {
                "device": device,
                "part": part,
                "boot": telemetry.boot,
                "seq": seq,
                "body": store.to_json(getattr(telemetry, part)),
            }
            before = self._rows.get((device, part))
            if before is None or not _is_later(before, row):
                self._rows[device, part] = row

    def write(self, connection: sa.Connection) -> None:
        if not self._rows:
            return
        devices = sorted({device for device, _ in self._rows})
        for start in range(0, len(devices), _LOOKUP_LENGTH):
            some = devices[start : start + _LOOKUP_LENGTH]
            query = sa.select(parts).where(parts.c.device.in_(some))
            for row in connection.execute(query).mappings():
                new = self._rows.get((row["device"], row["part"]))
                if new is not None and _is_later(row, new):
                    del self._rows[row["device"], row["part"]]
        columns = ["boot", "seq", "body"]
        store.upsert(connection, parts, list(self._rows.values()), replace=columns)


def _is_later(row: Row, other: Row) -> bool:
    """Whether `row` is of a later message of the same boot than `other`."""
    return bool(row["boot"] == other["boot"] and row["seq"] > other["seq"])


def of(connection: sa.Connection, device: str, telemetry: Telemetry | None) -> PartsView:
    """The parts that a device's latest telemetry refers to."""
    if telemetry is None:
        return PartsView()
    rows = connection.execute(sa.select(parts).where(parts.c.device == device)).mappings()
    known = {
        row["part"]: row["body"]
        for row in rows
        if row["boot"] == telemetry.boot and telemetry.told.get(row["part"]) == row["seq"]
    }
    kinds: dict[Part, Any] = {
        "about": About,
        "slots": dict[ModelName, ModelState],
        "drift": tuple[DriftFigures, ...],
    }
    return PartsView(
        **{part: store.from_json(known[part], kinds[part]) for part in kinds if part in known}
    )
