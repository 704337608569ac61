"""Released: what a fleet's signed repository says of a bundle, and where its files lie.

A bundle is a target of a TUF repository (docs/repository.md). Its path names model, version and
profile; what a device must know beyond size and sha256 is in the target's `custom`. A candidate of
a federated round lies below `candidates/`, which is all that the coordinator's key may sign for.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from edgekit.errors import FleetError
from edgekit.manifest import Sha256
from edgekit.messages import Digest

SUFFIX = ".edge"
CANDIDATES = "candidates/"
METADATA_FOLDER = "metadata/"
TARGETS_FOLDER = "targets/"
MAX_PATH_CHARS = 400

_PART = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
_PATH = re.compile(rf"(candidates/)?{_PART}/{_PART}/{_PART}\Z")

Size = Annotated[int, msgspec.Meta(gt=0, le=8 << 30)]


class DeltaEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A way from an older bundle to this one; a target of its own.

    Attributes:
        base: digest of the older bundle; `from` in JSON.
        path: of the delta's target.
        sha256: of the delta's file.
    """

    base: Digest = msgspec.field(name="from")
    path: Annotated[str, msgspec.Meta(max_length=MAX_PATH_CHARS)]
    sha256: Sha256
    size_bytes: Size


class Custom(msgspec.Struct, frozen=True, kw_only=True):
    """`custom` of a bundle's target; fields of later versions are ignored."""

    digest: Digest
    deltas: Annotated[tuple[DeltaEntry, ...], msgspec.Meta(max_length=64)] = ()


def bundle_path(*, name: str, version: str, profile: str, candidate: bool = False) -> str:
    """The target path of a bundle: `NAME/VERSION/PROFILE.edge`, below `candidates/` for one."""
    return f"{CANDIDATES if candidate else ''}{name}/{version}/{profile}{SUFFIX}"


def delta_path(path: str, *, base: str) -> str:
    """The target path of a delta to the bundle at `path` from the one with digest `base`."""
    short = base.removeprefix("sha256:")[:16]
    return f"{path.removesuffix(SUFFIX)}.from-{short}.delta"


def check_path(path: str) -> str:
    """`path`, raising `FleetError` where no target can have it."""
    if len(path) > MAX_PATH_CHARS or _PATH.match(path) is None:
        raise FleetError(
            f"{path[:MAX_PATH_CHARS]!r} is not the path of a bundle in a signed repository",
            hint="it is NAME/VERSION/PROFILE.edge",
        )
    return path


def parts(path: str) -> tuple[str, str, str]:
    """Name, version and profile of a bundle's target path."""
    name, version, file = check_path(path).removeprefix(CANDIDATES).split("/")
    return name, version, file.removesuffix(SUFFIX)


def stored(path: str, sha256: str) -> str:
    """Where a target's file lies below the repository: its name carries its sha256.

    So a file is never replaced, and two states of a repository can be served at once.
    """
    folder, _, file = path.rpartition("/")
    return f"{TARGETS_FOLDER}{folder}/{sha256}.{file}"
