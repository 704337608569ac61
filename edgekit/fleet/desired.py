"""Desired: what each device shall serve. The number only grows, and the broker hears of each.

A change is committed with `sent` false; the sender publishes it, retained, until the link takes
it. After a connection is lost everything is sent again: the broker may have lost it too. A fleet
with keys signs each, in the name of the one device that it is for.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from edgekit import envelope, messages, topics
from edgekit.fleet import inventory, store
from edgekit.fleet.inventory import Device
from edgekit.fleet.store import Store
from edgekit.messages import Desired, Wanted
from edgekit.signing import SigningKey

Models = dict[str, Wanted]


def models_of(connection: sa.Connection, device: str) -> Models:
    """What a device shall serve, by model."""
    found = _row(connection, device)
    return store.from_json(found["models"], Models) if found else {}


def assign(connection: sa.Connection, device: Device, *, model: str, wanted: Wanted | None) -> int:
    """Change what a device shall serve of one model (`None`: nothing) and return the new serial.

    The serial is above every one that the device ever took, even if the store was begun anew.
    """
    found = _row(connection, device.device)
    models = store.from_json(found["models"], Models) if found else {}
    if wanted is None:
        models.pop(model, None)
    else:
        models[model] = wanted
    last = found["serial"] if found else 0
    serial: int = max(last, device.reported.serial if device.reported else 0) + 1
    row = {
        "device": device.device,
        "serial": serial,
        "models": store.to_json(models),
        "sent": False,
    }
    store.upsert(connection, store.desired, [row], replace=["serial", "models", "sent"])
    return serial


class Sender:
    """Publishes what was not sent yet.

    Args:
        publish: hands a retained message to the link; `False` where it has no room now.
        key: signs what devices shall do; `None` where they are told without a signature.
    """

    def __init__(
        self,
        *,
        store: Store,
        publish: Callable[[str, bytes], bool],
        key: SigningKey | None = None,
    ) -> None:
        self._store = store
        self._publish = publish
        self._key = key

    def forget(self) -> None:
        """Take everything as not sent: the connection is a new one."""
        with self._store.write() as connection:
            connection.execute(store.desired.update().values(sent=False))

    def flush(self) -> bool:
        """Send until nothing is left, or the link has no room; whether nothing is left."""
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
            if not self._publish(topic, encode(body, key=self._key)):
                break
            taken.append({"b_device": row["device"], "b_serial": row["serial"]})
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


def encode(body: Desired, *, key: SigningKey | None) -> bytes:
    """A desired state as it travels: in an envelope where there is a key."""
    payload = messages.encode(body)
    return payload if key is None else envelope.sign(payload, kind=envelope.DESIRED, key=key)


def _row(connection: sa.Connection, device: str) -> store.Row | None:
    query = sa.select(store.desired).where(store.desired.c.device == device)
    return connection.execute(query).mappings().first()
