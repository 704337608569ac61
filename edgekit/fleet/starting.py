"""Starting: the commands that start a fleet's two processes, and what they say once they run.

Rule: where devices connect is named, and where they cannot, that.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from edgekit.fleet.address import Address
from edgekit.fleet.folder import Facts

_OPERATORS_PORT = 8600
_BEHIND_PROXY = "127.0.0.1:8601"


def broker_command(folder: Path) -> str:
    """What starts the fleet's broker."""
    return f"edgekit broker --fleet {folder}"


def coordinator_command(folder: Path, facts: Facts) -> str:
    """What starts the fleet's coordinator, with the socket at which its devices enrol."""
    devices = devices_address(facts)
    return f"edgekit coordinator --fleet {folder}{f' --devices {devices}' if devices else ''}"


def devices_address(facts: Facts) -> str | None:
    """`HOST:PORT` for `--devices`; `None` where devices are told the operators' own socket.

    It listens on every address at the port that devices are told. Where they are told https, a
    proxy in front answers them.
    """
    parts = urlsplit(facts.coordinator)
    if parts.scheme == "https":
        return _BEHIND_PROXY
    told = Address(parts.hostname or "", parts.port or 80)
    if not told.is_loopback:
        return str(Address("0.0.0.0", told.port))  # noqa: S104 - it serves devices alone
    return None if told.port == _OPERATORS_PORT else str(told)


def broker_told(url: str, listen: Address, *, for_fleet: bool) -> list[str]:
    """What a broker says when it is ready, and who can reach it."""
    lines = [f"broker ready at {url}"]
    if not listen.is_loopback:
        where = "every address" if listen.host in ("0.0.0.0", "::") else listen.host  # noqa: S104
        who = "the fleet's devices get in, by their certificates"
        if not for_fleet:
            who = "whoever reaches it gets in, without a password"
        lines.append(f"it listens on {where}, port {listen.port}: {who}")
    return lines


def coordinator_told(
    listen: Address, devices: Address | None, *, folder: Path | None, facts: Facts | None
) -> list[str]:
    """What a coordinator says when it is ready: where its dashboard is, and where devices enrol.

    Args:
        listen: of the operators' socket.
        devices: of the devices' own.
        folder: of the fleet, with its `facts`; `None` where nothing is enrolled.
    """
    lines = [f"coordinator ready, dashboard at http://{listen}/"]
    if folder is None or facts is None:
        return lines
    if devices is not None:
        told = f"devices enrol and fetch at http://{devices}; they are told {facts.coordinator}"
        return [*lines, told]
    if listen.port == urlsplit(facts.coordinator).port:
        return [*lines, f"devices enrol and fetch at the same address, {facts.coordinator}"]
    return [
        *lines,
        f"there is no socket for devices, which are told {facts.coordinator}: they cannot enrol",
        f"{coordinator_command(folder, facts)} opens one",
    ]
