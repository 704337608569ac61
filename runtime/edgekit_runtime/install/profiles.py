"""Profiles on a board: resolved, as JSON beside the configuration, because a board has no YAML."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec

from edgekit import profile as profiles
from edgekit.errors import ProfileError, UsageError
from edgekit.profile import DeviceProfile
from edgekit_runtime.install.files import read

FILE = "profile.json"


def encode(profile: DeviceProfile) -> str:
    """The file's text, for people too."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=2).decode() + "\n"


def find(name: str, *, folder: Path) -> DeviceProfile:
    """The profile called `name`: a JSON file, one that was left on the board, or one of edgekit's.

    `edgekit device install` leaves one beside the configuration, a wheelhouse beside the programs
    that it installs.

    Raises:
        ProfileError: there is none, it is not valid, or it is YAML that nothing here reads.
    """
    if name.endswith(".json"):
        return decode(Path(name))
    for kept in (folder / FILE, Path(sys.prefix) / FILE):
        if kept.is_file() and (found := decode(kept)).name == name:
            return found
    if find_spec("yaml") is None:
        raise ProfileError(
            f"profile {name} is not in {folder}, and this board has no YAML to read others",
            hint=f"on a workstation: edgekit profiles show {name} --json > {FILE}; put it there",
        )
    return profiles.find(name)


def require_daemon(profile: DeviceProfile) -> None:
    """Raise `UsageError` for a board on which no daemon runs."""
    if profile.runtime == "artefact-only":
        raise UsageError(
            f"the daemon does not run on {profile.title}: a build gives the file for it, and"
            " another program runs that",
            hint="edgekit profiles list shows where it runs",
        )


def decode(path: Path) -> DeviceProfile:
    """The profile in a JSON file.

    Raises:
        ProfileError: there is none, or it is not valid.
    """
    text = read(path)
    if text is None:
        raise ProfileError(f"there is no profile {path}")
    try:
        return msgspec.json.decode(text, type=DeviceProfile)
    except msgspec.MsgspecError as e:
        raise ProfileError(f"profile {path} is not valid: {e}") from e
