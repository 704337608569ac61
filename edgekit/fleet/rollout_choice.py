"""Choice: which devices a rollout takes, and what an operator should know before it goes on.

Rule: a device is in one open rollout of a model at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from edgekit import released
from edgekit.errors import FleetError
from edgekit.fleet import inventory, rollout, store
from edgekit.fleet.inventory import Device
from edgekit.fleet.repository import Published
from edgekit.fleet.rollout import Plan


def choose(connection: sa.Connection, *, site: str | None, named: Sequence[str]) -> list[Device]:
    """The devices of a rollout: those online first, so that a canary can answer.

    Args:
        site: only devices of this one.
        named: only these; none stands for all.

    Raises:
        FleetError: no such device is known, or one of them was revoked.
    """
    if named:
        found = {one.device: one for one in (inventory.find_enrolled(connection, n) for n in named)}
        chosen = [device for device in found.values() if site in (None, device.site)]
    else:
        chosen = inventory.every(connection, site=site, revoked=False)
    if not chosen:
        raise FleetError(
            "no device has reported yet" + (f" at site {site}" if site else ""),
            hint="start edgekitd on a device with a [fleet] section in its configuration",
        )
    return sorted(chosen, key=lambda device: (not device.online, device.device))


def check_free(connection: sa.Connection, model: str, chosen: Sequence[Device]) -> None:
    """Two rollouts of one model must not pull at one device: raises `FleetError`."""
    table, members = store.rollouts, store.rollout_devices
    query = sa.select(table).where(table.c.state.in_(("running", "paused")))
    for row in connection.execute(query).mappings().all():
        if store.from_json(row["plan"], Plan).model != model:
            continue
        takes_part = members.c.outcome.not_in(rollout.NO_PART)
        in_it = sa.select(members.c.device).where(members.c.rollout == row["id"], takes_part)
        busy = set(connection.scalars(in_it))
        shared = sorted(busy & {device.device for device in chosen})
        if shared:
            raise FleetError(
                f"rollout {row['id']} of {model} is {row['state']} and has {shared[0]} in it",
                hint=f"edgekit rollout abort {row['id']} ends it",
            )


def profiles_of(chosen: Sequence[Device]) -> list[str]:
    """The profiles of these devices; "" for one that never said its own."""
    return sorted({device.profile for device in chosen})


def told(chosen: Sequence[Device]) -> str:
    """The same for people."""
    profiles = [name or "unknown" for name in profiles_of(chosen)]
    return f"the {len(chosen)} devices have {', '.join(profiles)}"


def warnings(taken: Sequence[Published], *, release_key: str) -> tuple[str, ...]:
    """What to know of the bundles that a rollout takes, in sentences.

    Args:
        release_key: id of the key whose releases devices trust that enrol now. A device that
            enrolled before it was exchanged also trusts what the one before signed.
    """
    old = [
        item.profile
        for item in taken
        if item.signer != release_key and not item.target.startswith(released.CANDIDATES)
    ]
    if not old:
        return ()
    first = taken[0]
    said = (
        f"{first.name} {first.version} for {', '.join(old)} was signed by a release key that was"
        " exchanged since: devices that enrolled after that refuse it; build it with a higher"
        " --version, sign it with the release key of today and publish that"
    )
    return (said,)
