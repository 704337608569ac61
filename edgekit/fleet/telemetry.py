"""Telemetry, summed: what each variant of each model did over the whole fleet, by minute.

Counts and histograms add up, so a dashboard reads a few rows, however many devices report. They
count for the minute in which they were made, however long they waited on the device.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from edgekit.fleet import histogram, store
from edgekit.messages import Counted, ModelFigures, Telemetry

Key = tuple[str, str, str]

MINUTE_MS = 60_000
LONGEST_WAIT_MS = 60 * 86_400_000

# The largest sum that a database column holds; a device that tells nonsense must not break it.
_MOST = (1 << 63) - 1


class Total(msgspec.Struct, kw_only=True):
    """Running sums of one variant; times in microseconds, `latency_us` by bucket."""

    requests: int = 0
    errors: int = 0
    rejected: int = 0
    engine_us: int = 0
    latency_us: dict[int, int] = {}

    def add(self, other: Total | ModelFigures) -> None:
        self.requests = _sum(self.requests, other.requests)
        self.errors = _sum(self.errors, other.errors)
        self.rejected = _sum(self.rejected, other.rejected)
        self.engine_us = _sum(self.engine_us, other.engine_us)
        for bucket, count in other.latency_us.items():
            self.latency_us[bucket] = _sum(self.latency_us.get(bucket, 0), count)


def observed_ms(message: Counted, *, received_ms: int) -> int:
    """When a message was made, on the coordinator's clock, in milliseconds since 1970 UTC.

    A device's wall clock may be years off; how long the message waited there is known from its
    monotonic clock. Only for messages of an earlier boot the wall clock is all there is, and a
    time in the future, or longer ago than `LONGEST_WAIT_MS`, is taken for now.

    Args:
        received_ms: when it came.
    """
    if message.sent >= message.up > 0:
        return max(0, received_ms - (message.sent - message.up))
    is_likely = 0 <= received_ms - message.at <= LONGEST_WAIT_MS
    return message.at if is_likely else received_ms


class Sums:
    """What a batch of telemetry adds to the minutes in which it was made."""

    def __init__(self) -> None:
        self._minutes: dict[int, dict[Key, Total]] = {}

    def add(self, telemetry: Telemetry, *, at_ms: int) -> None:
        """Count a message that was made at a time."""
        if not telemetry.models:
            return
        totals = self._minutes.setdefault(at_ms - at_ms % MINUTE_MS, {})
        for figures in telemetry.models:
            key = (figures.model, figures.version, figures.variant)
            totals.setdefault(key, Total()).add(figures)

    def write(self, connection: sa.Connection) -> None:
        for minute_ms, totals in self._minutes.items():
            _add_to_minute(connection, minute_ms, totals)


def _add_to_minute(connection: sa.Connection, minute_ms: int, totals: Mapping[Key, Total]) -> None:
    table = store.figures
    rows = connection.execute(sa.select(table).where(table.c.minute_ms == minute_ms)).mappings()
    for row in rows:
        if _key(row) in totals:
            totals[_key(row)].add(_total(row))
    changed = [_row(minute_ms, key, total) for key, total in totals.items()]
    columns = ["requests", "errors", "rejected", "engine_us", "latency"]
    store.upsert(connection, table, changed, replace=columns)


class VariantView(msgspec.Struct, frozen=True, kw_only=True):
    """One variant of one model over a span of time, for people."""

    model: str
    version: str
    variant: str
    requests: int
    errors: int
    rejected: int
    engine_ms_mean: float | None
    p50_ms: float | None
    p99_ms: float | None


def since(connection: sa.Connection, *, from_ms: int) -> list[VariantView]:
    """What each variant did over the fleet since a time (whole minutes)."""
    table = store.figures
    totals: dict[Key, Total] = {}
    rows = connection.execute(sa.select(table).where(table.c.minute_ms >= from_ms)).mappings()
    for row in rows:
        totals.setdefault(_key(row), Total()).add(_total(row))
    return [_view(key, totals[key]) for key in sorted(totals)]


def prune(connection: sa.Connection, *, before_ms: int) -> int:
    """Forget minutes before a time; how many rows there were."""
    old = sa.delete(store.figures).where(store.figures.c.minute_ms < before_ms)
    return connection.execute(old).rowcount


def _view(key: Key, total: Total) -> VariantView:
    served = total.requests - total.errors
    return VariantView(
        model=key[0],
        version=key[1],
        variant=key[2],
        requests=total.requests,
        errors=total.errors,
        rejected=total.rejected,
        engine_ms_mean=total.engine_us / served / 1000 if served > 0 else None,
        p50_ms=histogram.quantile_ms(total.latency_us, 0.5),
        p99_ms=histogram.quantile_ms(total.latency_us, 0.99),
    )


def _sum(a: int, b: int) -> int:
    return min(a + b, _MOST)


def _key(row: store.Row) -> Key:
    return row["model"], row["version"], row["variant"]


def _total(row: store.Row) -> Total:
    return Total(
        requests=row["requests"],
        errors=row["errors"],
        rejected=row["rejected"],
        engine_us=row["engine_us"],
        latency_us=store.from_json(row["latency"], dict[int, int]),
    )


def _row(minute_ms: int, key: Key, total: Total) -> dict[str, object]:
    model, version, variant = key
    return {
        "minute_ms": minute_ms,
        "model": model,
        "version": version,
        "variant": variant,
        "requests": total.requests,
        "errors": total.errors,
        "rejected": total.rejected,
        "engine_us": total.engine_us,
        "latency": store.to_json(total.latency_us),
    }
