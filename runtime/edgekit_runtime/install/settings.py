"""Settings: the configuration that an installation begins with.

What is written has been read back by the daemon's own rules, so a wrong name is refused before
anything is on disk.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekit.errors import UsageError
from edgekit.structs import Strict
from edgekit_runtime import config
from edgekit_runtime.config import Config
from edgekit_runtime.install import files

SOCKET = Path("/run/edgekit/edgekit.sock")
STATE = Path("/var/lib/edgekit")
IDENTITY = "identity"
_ID_CHARS = 63


class Wishes(Strict, frozen=True, kw_only=True):
    """What is asked of the configuration; None where nothing is asked.

    Attributes:
        trust: public keys whose bundles may run here.
        enrolled: whether the board belongs to a fleet, by the identity below its state folder.
    """

    site: str | None = None
    device: str | None = None
    profile: str | None = None
    state: Path | None = None
    trust: tuple[Path, ...] = ()
    enrolled: bool = False


def standing(path: Path) -> Config | None:
    """The configuration that is there; None where there is none.

    Raises:
        ConfigError: it is not valid.
    """
    return config.read(path) if path.exists() else None


def filled(wishes: Wishes, before: Config | None) -> Wishes:
    """Wishes, with what nobody asked for taken from the configuration that is there.

    Raises:
        UsageError: neither names a site and a profile.
    """
    if before is not None:
        fleet = before.fleet
        wishes = msgspec.structs.replace(
            wishes,
            site=wishes.site or before.device.site,
            device=wishes.device or before.device.id,
            profile=wishes.profile or before.device.profile,
            state=wishes.state or before.state.folder,
            trust=wishes.trust or before.trust.keys,
            enrolled=wishes.enrolled or (fleet is not None and fleet.identity is not None),
        )
    if wishes.site is None or wishes.profile is None:
        raise UsageError(
            "a new board needs --site and --profile",
            hint="edgekit device install --site plant-1 --profile raspberry-pi-5",
        )
    return msgspec.structs.replace(
        wishes, device=wishes.device or host_id(socket.gethostname()), state=wishes.state or STATE
    )


def host_id(hostname: str) -> str:
    """A host's name as the id of a device: `[a-z0-9-]`, at most 63."""
    first = hostname.partition(".")[0].lower()
    return re.sub(r"[^a-z0-9-]+", "-", first).strip("-")[:_ID_CHARS] or "device"


def text(wishes: Wishes) -> str:
    """The configuration in TOML.

    Raises:
        ConfigError: it breaks a rule of the configuration, an id that is too long for one.
    """
    lines = "".join(f"{line}\n" for line in _lines(wishes))
    config.decode(lines.encode(), what="the new configuration")
    return lines


def effective(path: Path, planned: str, *, root: Path, outcome: files.Outcome) -> Config:
    """What the daemon will read: the file that stands where it is kept, else the new one."""
    if outcome == "kept":
        return config.read(files.below(root, path))
    return config.decode(planned.encode(), what=str(path))


def _lines(wishes: Wishes) -> Iterator[str]:
    assert wishes.state is not None
    yield "# docs/device.md explains every field."
    yield "[device]"
    yield f"site = {_quoted(wishes.site)}"
    yield f"id = {_quoted(wishes.device)}"
    yield f"profile = {_quoted(wishes.profile)}"
    yield ""
    yield "[state]"
    yield f"folder = {_quoted(wishes.state)}"
    yield ""
    yield "[serve]"
    yield f"unix = {_quoted(SOCKET)}"
    yield ""
    yield "[trust]"
    yield "# Public keys whose bundles may run here."
    yield f"keys = [{', '.join(map(_quoted, wishes.trust))}]"
    yield ""
    identity = f"identity = {_quoted(wishes.state / IDENTITY)}"
    if wishes.enrolled:
        yield "[fleet]"
        yield identity
    else:
        yield "# Once `edgekit device enroll` has been run:"
        yield "# [fleet]"
        yield f"# {identity}"


def _quoted(value: object) -> str:
    """A basic string of TOML, whose escapes are JSON's."""
    return json.dumps(str(value))
