"""Accounts: the daemon's user and its folders, as systemd-sysusers and systemd-tmpfiles make them.

A user of its own owns the state folder and may open the accelerator. Both programs work on a
mounted image too (`--root=DIR`), and at the start of a board whose `/var` is empty.

Sources: sysusers.d(5), tmpfiles.d(5).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import UsageError

USERS = Path("/etc/sysusers.d/edgekit.conf")
FOLDERS = Path("/etc/tmpfiles.d/edgekit.conf")

_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}\Z")


def check_user(user: str) -> None:
    """Raise `UsageError` for what cannot be the name of a user."""
    if _USER.match(user) is None:
        raise UsageError(
            f"{user!r} cannot be a user's name", hint="lower-case letters, digits, - and _"
        )


def users(user: str, *, state: Path, groups: Sequence[str]) -> str:
    """The user, at home in the state folder and in the groups that own the accelerator."""
    lines = [f'u {user} - "edgekit daemon" {state}', *(f"m {user} {group}" for group in groups)]
    return "".join(f"{line}\n" for line in lines)


def folders(user: str, *, state: Path) -> str:
    """The state folder, before the service has ever run: enrolment writes there."""
    return f"d {state} 0750 {user} {user} -\n"
