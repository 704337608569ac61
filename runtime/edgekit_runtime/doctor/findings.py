"""Finding: one thing that was looked at, how it stands, and the command that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgekit.errors import BundleError, EdgekitError, EngineError, UsageError
from edgekit.structs import Strict

Area = Literal[
    "board",
    "python",
    "package",
    "engine",
    "driver",
    "firmware",
    "service",
    "trust",
    "fleet",
    "bundle",
]
Status = Literal["ok", "note", "unknown", "wrong"]

_ERRORS: tuple[tuple[type[EdgekitError], tuple[Area, ...]], ...] = (
    (BundleError, ("bundle",)),
    (EngineError, ("engine", "driver", "firmware")),
    (UsageError, ("board", "python", "package", "service", "trust", "fleet")),
)


class Finding(Strict, frozen=True, kw_only=True):
    """What was found of one thing.

    Attributes:
        subject: its name: an engine, a driver, a bundle.
        status: `note` for what differs and does no harm, `unknown` for what could not be read,
            `wrong` for what keeps something from working.
        found: here; None where there is none, or it cannot be told.
        wanted: by the profile; None where it says nothing.
        detail: in words.
        command: what mends it, to be typed; None where nothing has to be.
    """

    area: Area
    subject: str
    status: Status
    found: str | None = None
    wanted: str | None = None
    detail: str = ""
    command: str | None = None


def verdict(findings: Sequence[Finding]) -> EdgekitError | None:
    """What a command ends with: None where nothing is wrong, else the gravest class there is."""
    wrong = [finding for finding in findings if finding.status == "wrong"]
    for error, areas in _ERRORS:
        first = next((finding for finding in wrong if finding.area in areas), None)
        if first is not None:
            names = ", ".join(dict.fromkeys(finding.subject for finding in wrong))
            return error(f"{len(wrong)} not as it should be: {names}", hint=first.command)
    return None
