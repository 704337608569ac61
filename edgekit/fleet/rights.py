"""Rights: which devices of the inventory have none any more, in step with the fleet's record.

What such a device said before stays. It is never online, and no rollout and no count waits for it;
enrolled anew, it is a device like any other.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from edgekit.fleet import store


def settle(connection: sa.Connection, *, enrolled: Collection[str], ever: Collection[str]) -> None:
    """Bring the store in step with the record; devices are named `SITE/ID`.

    Args:
        enrolled: those that have rights; all others have none.
        ever: those that were enrolled once, known to the store or not: what one of them said last
            may still be on its way into it.
    """
    table, devices = store.revoked, store.devices
    known = set(connection.scalars(sa.select(devices.c.device)))
    before, now = revoked(connection), (known | set(ever)) - set(enrolled)
    named: sa.BindParameter[str] = sa.bindparam("b_device")
    back = [{"b_device": device} for device in sorted(before - now)]
    gone = [{"b_device": device} for device in sorted(now - before)]
    if back:
        connection.execute(table.delete().where(table.c.device == named), back)
    if gone:
        connection.execute(table.insert().values(device=named), gone)
        its_row = devices.update().where(devices.c.device == named)
        connection.execute(its_row.values(online=False), gone)


def revoked(connection: sa.Connection) -> frozenset[str]:
    """Every device that has no rights any more."""
    return frozenset(connection.scalars(sa.select(store.revoked.c.device)))
