"""Store: everything the coordinator knows, in one SQL database; what is committed is on disk.

SQLite in WAL mode by default. Statements are SQLAlchemy Core in the common subset of SQLite and
PostgreSQL; PostgreSQL by URL follows from that and has not been run. Documents that are only read
as a whole (a reported state, a plan) are JSON text; what is searched or counted has columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from edgekit.errors import FleetError, StorageError
from edgekit.manifest import canonical

SCHEMA_VERSION = 2
T = TypeVar("T")

metadata = sa.MetaData()

schema_info = sa.Table("schema_info", metadata, sa.Column("version", sa.Integer, primary_key=True))

# `device` is "SITE/ID" in every table. Times are milliseconds since 1970 UTC.
devices = sa.Table(
    "devices",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("online", sa.Boolean, nullable=False, default=False),
    sa.Column("boot", sa.Text, nullable=False, default=""),
    sa.Column("profile", sa.Text, nullable=False, default=""),
    sa.Column("software", sa.Text, nullable=False, default=""),
    sa.Column("first_seen_ms", sa.BigInteger, nullable=False),
    sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
    sa.Column("reported", sa.Text),
    sa.Column("telemetry", sa.Text),
)

# Devices without rights, kept in step with the fleet's record (`rights`); none where the fleet
# has no keys. What such a device said before stays.
revoked = sa.Table("revoked", metadata, sa.Column("device", sa.Text, primary_key=True))

# How far the messages of one boot of a device are stored without a gap.
boots = sa.Table(
    "boots",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("boot", sa.Text, primary_key=True),
    sa.Column("acked", sa.BigInteger, nullable=False),
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("boot", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("leaf", sa.Text, nullable=False),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Index("messages_received", "received_ms"),
)

# Sums over all devices, by minute; `latency` is a histogram {bucket: count} as JSON.
figures = sa.Table(
    "figures",
    metadata,
    sa.Column("minute_ms", sa.BigInteger, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("variant", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("rejected", sa.BigInteger, nullable=False),
    sa.Column("engine_us", sa.BigInteger, nullable=False),
    sa.Column("latency", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
)

# The desired state of each device; `sent` is false until the broker has taken it.
desired = sa.Table(
    "desired",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("serial", sa.BigInteger, nullable=False),
    sa.Column("models", sa.Text, nullable=False),
    sa.Column("sent", sa.Boolean, nullable=False),
)

bundles = sa.Table(
    "bundles",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("profile", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("file_sha256", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("signer", sa.Text, nullable=False),
    sa.Column("trainable", sa.Boolean, nullable=False),
    sa.Column("published_ms", sa.BigInteger, nullable=False),
    sa.Column("target", sa.Text, nullable=False, default=""),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)

# `serial` and `asked_ms` are set when the device is asked; `previous` is what it had before, and
# `failed_before` says that it had failed with this very bundle.
rollout_devices = sa.Table(
    "rollout_devices",
    metadata,
    sa.Column("rollout", sa.Integer, sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("wanted", sa.Text),
    sa.Column("previous", sa.Text),
    sa.Column("serial", sa.BigInteger),
    sa.Column("asked_ms", sa.BigInteger),
    sa.Column("failed_before", sa.Boolean, nullable=False, default=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

series = sa.Table(
    "series",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("candidate", sa.Text),
    sa.Column("rollout", sa.Integer),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("series", sa.Integer, sa.ForeignKey("series.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("round", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("participants", sa.Text, nullable=False),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("closes_ms", sa.BigInteger, nullable=False),
    sa.Column("closed_ms", sa.BigInteger),
)

# Every answer in a round, also those that were not counted, with the reason.
updates = sa.Table(
    "updates",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("round", sa.Text, nullable=False, index=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("accepted", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("samples", sa.BigInteger),
    sa.Column("loss_before", sa.Float),
    sa.Column("loss_after", sa.Float),
    sa.Column("seconds", sa.Float),
)

# Each command to a device; `counter` only grows within a device. States: fleet/control_rules.py.
commands = sa.Table(
    "commands",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("args", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("limit_s", sa.Float),
    sa.Column("issued_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
    sa.Column("sent_ms", sa.BigInteger),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("reason", sa.Text),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("answered_ms", sa.BigInteger),
    sa.Column("took_ms", sa.BigInteger),
    sa.Column("output", sa.Text),
    sa.Index("commands_device", "device", "counter", unique=True),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)


class UnknownId(FleetError):
    """Nothing in the store has that name or id."""


class Store:
    """An open database.

    Args:
        url: an SQLAlchemy URL; `Store.in_folder` makes the usual one.

    Raises:
        StorageError: the database cannot be opened, or another version of edgekit made it.
    """

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _on_sqlite_connect)
            sa.event.listen(self._engine, "begin", _on_sqlite_begin)
        try:
            metadata.create_all(self._engine)
            self._check_version()
        except sa.exc.DBAPIError as e:
            raise StorageError(f"the coordinator's store {url} cannot be opened: {e.orig}") from e

    @classmethod
    def in_folder(cls, folder: Path) -> Store:
        """The SQLite store of a coordinator's state folder."""
        return cls(f"sqlite:///{folder / 'fleet.sqlite'}")

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that commits at the end of the block, or leaves no trace."""
        try:
            with (
                self._engine.connect().execution_options(edgekit_write=True) as connection,
                connection.begin(),
            ):
                yield connection
        except sa.exc.DBAPIError as e:
            raise StorageError(
                f"the coordinator's store cannot be written: {e.orig}",
                hint="check free space and permissions of the state folder",
            ) from e

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view; a writer does not wait for it."""
        try:
            with self._engine.connect() as connection, connection.begin():
                yield connection
        except sa.exc.DBAPIError as e:
            raise StorageError(
                f"the coordinator's store cannot be read: {e.orig}",
                hint="check the disk and the permissions of the state folder",
            ) from e

    def close(self) -> None:
        self._engine.dispose()

    def _check_version(self) -> None:
        with self.write() as connection:
            found = connection.scalar(sa.select(schema_info.c.version))
            if found is None:
                connection.execute(schema_info.insert().values(version=SCHEMA_VERSION))
            elif found != SCHEMA_VERSION:
                raise StorageError(
                    f"the coordinator's store has schema {found}, this edgekit {SCHEMA_VERSION}",
                    hint="use the edgekit that made it, or another --state folder",
                )


Row = sa.RowMapping


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: list[dict[str, Any]],
    *,
    replace: Iterable[str] = (),
) -> None:
    """Insert rows; where the primary key is there already, replace the columns named.

    Without columns to replace, rows that are there already stay as they are.
    """
    if not rows:
        return
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = kind.insert(table)
    columns = {name: statement.excluded[name] for name in replace}
    key = list(table.primary_key.columns)
    if columns:
        connection.execute(statement.on_conflict_do_update(index_elements=key, set_=columns), rows)
    else:
        connection.execute(statement.on_conflict_do_nothing(index_elements=key), rows)


def log_action(
    connection: sa.Connection, *, at_ms: int, action: str, subject: str, detail: object
) -> None:
    """Note what was done to the fleet, in the same transaction as the deed."""
    connection.execute(
        audit.insert().values(at_ms=at_ms, action=action, subject=subject, detail=to_json(detail))
    )


def to_json(value: object) -> str:
    """A document as it is stored."""
    return canonical(value).decode()


def from_json(text: str, kind: type[T]) -> T:
    """A document that `to_json` wrote; the store is ours, so it is trusted to be well formed."""
    return msgspec.json.decode(text.encode(), type=kind)


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling begins too late; `_on_sqlite_begin` does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: what is acknowledged to a device must survive a power cut of the coordinator.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _on_sqlite_begin(connection: sa.Connection) -> None:
    # A writer takes its lock at once: upgrading a read lock can fail without any wait.
    write = connection.get_execution_options().get("edgekit_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
