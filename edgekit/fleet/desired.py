"""Desired: what each device shall serve. The number only grows, and the broker hears of each.

A change is committed with `sent` false; the sender publishes it, retained, until the link takes
it. After a connection is lost everything is sent again: the broker may have lost it too. So is what
a device that is online has not reported as taken, more and more rarely. A fleet with keys signs
each, in the name of the one device that it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import sqlalchemy as sa

from edgekit import envelope, messages, topics
from edgekit.clock import Clock
from edgekit.fleet import inventory, store
from edgekit.fleet.inventory import Device
from edgekit.fleet.store import Store
from edgekit.messages import Desired, Reported, Wanted
from edgekit.signing import SigningKey

Models = dict[str, Wanted]

# How far ahead of our clock a device's own word for its serial is believed.
_AHEAD_MS = 86_400_000
_REPEAT_S = 10.0
_LONGEST_REPEAT_S = 3600.0
# Devices that are looked up at once.
_MOST_DUE = 500


def models_of(connection: sa.Connection, device: str) -> Models:
    """What a device shall serve, by model."""
    found = _row(connection, device)
    return store.from_json(found["models"], Models) if found else {}


def assign(
    connection: sa.Connection,
    device: Device,
    *,
    model: str,
    wanted: Wanted | None,
    now_ms: int,
) -> int:
    """Change what a device shall serve of one model (`None`: nothing) and return the new serial.

    The serial is by the clock, so that a store begun anew goes on above the old one too. What a
    device reports is believed for a day ahead at most: the broker may have made it up, and above
    the highest serial no wish could ever follow.
    """
    found = _row(connection, device.device)
    models = store.from_json(found["models"], Models) if found else {}
    if wanted is None:
        models.pop(model, None)
    else:
        models[model] = wanted
    last = found["serial"] if found else 0
    taken = device.reported.serial if device.reported else 0
    serial: int = max(last + 1, now_ms, taken + 1 if taken < now_ms + _AHEAD_MS else 0)
    row = {
        "device": device.device,
        "serial": serial,
        "models": store.to_json(models),
        "sent": False,
    }
    store.upsert(connection, store.desired, [row], replace=["serial", "models", "sent"])
    return serial


class _Told(NamedTuple):
    """What a device was told, when, and how long it has to report that it took it."""

    serial: int
    at_s: float
    patience_s: float


class Sender:
    """Publishes what was not sent yet, or not taken.

    Args:
        clock: for the time that a device has to take it.
        publish: hands a retained message to the link; `False` where it has no room now.
        key: signs what devices shall do; `None` where they are told without a signature.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        publish: Callable[[str, bytes], bool],
        key: SigningKey | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._publish = publish
        self._key = key
        self._told: dict[str, _Told] = {}

    def forget(self) -> None:
        """Take everything as not sent: the connection is a new one."""
        with self._store.write() as connection:
            connection.execute(store.desired.update().values(sent=False))

    def flush(self) -> bool:
        """Send until nothing is left, or the link has no room; whether nothing is left."""
        self._doubt()
        table = store.desired
        with self._store.read() as connection:
            query = sa.select(table).where(table.c.sent.is_(False)).order_by(table.c.device)
            waiting = connection.execute(query).mappings().all()
        taken = []
        for row in waiting:
            site, device_id = inventory.split(row["device"])
            body = Desired(
                serial=row["serial"],
                device=row["device"],
                models=store.from_json(row["models"], Models),
            )
            topic = topics.device(site, device_id, topics.DESIRED)
            payload = envelope.seal(messages.encode(body), kind=envelope.DESIRED, key=self._key)
            if not self._publish(topic, payload):
                break
            taken.append({"b_device": row["device"], "b_serial": row["serial"]})
            self._note(row["device"], row["serial"])
        if taken:
            # A change that came in between has a higher serial and stays to be sent.
            done = table.update().values(sent=True)
            done = done.where(
                table.c.device == sa.bindparam("b_device"),
                table.c.serial == sa.bindparam("b_serial"),
            )
            with self._store.write() as connection:
                connection.execute(done, taken)
        return len(taken) == len(waiting)

    def _note(self, device: str, serial: int) -> None:
        """A device was told; it has longer where it was told the same before."""
        told = self._told.get(device)
        patience_s = _REPEAT_S
        if told is not None and told.serial == serial:
            patience_s = min(2 * told.patience_s, _LONGEST_REPEAT_S)
        self._told[device] = _Told(serial, self._clock.monotonic(), patience_s)

    def _doubt(self) -> None:
        """Take as not sent what devices had time to take and did not."""
        now = self._clock.monotonic()
        due = [name for name, told in self._told.items() if now >= told.at_s + told.patience_s]
        if not due:
            return
        due = due[:_MOST_DUE]
        with self._store.read() as connection:
            behind = _behind(connection, due)
        for name in due:
            if name in behind:
                self._told[name] = self._told[name]._replace(at_s=now)
            else:
                del self._told[name]
        # Who is not online hears it when it connects: it is retained.
        again = [name for name, is_online in behind.items() if is_online]
        if again:
            change = store.desired.update().where(store.desired.c.device.in_(again))
            with self._store.write() as connection:
                connection.execute(change.values(sent=False))


def _behind(connection: sa.Connection, names: list[str]) -> dict[str, bool]:
    """Of these devices, those that have not reported their serial; whether each is online."""
    table, devices = store.desired, store.devices
    query = sa.select(table.c.device, table.c.serial, devices.c.online, devices.c.reported)
    query = query.join(devices, devices.c.device == table.c.device)
    found = {}
    for row in connection.execute(query.where(table.c.device.in_(names))):
        reported = store.from_json(row.reported, Reported) if row.reported else None
        if reported is None or reported.serial < row.serial:
            found[row.device] = bool(row.online)
    return found


def _row(connection: sa.Connection, device: str) -> store.Row | None:
    query = sa.select(store.desired).where(store.desired.c.device == device)
    return connection.execute(query).mappings().first()
