"""Publish: a signed bundle becomes a target, with deltas from the versions before it.

One name, version and profile is one digest for ever. The files are in their places, whole and on
disk for good, before metadata names them; nothing of a bundle that is refused stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from securesystemslib.signer import Signer
from tuf.api.metadata import SuccinctRoles, TargetFile

from edgekit import bundle, delta, released, storage
from edgekit.bundle import Bundle
from edgekit.clock import Clock
from edgekit.errors import FleetError
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.tuf import roles, signers
from edgekit.fleet.tuf.editor import Editor, locked
from edgekit.fleet.tuf.sweep import sweep
from edgekit.manifest import Version
from edgekit.released import Custom, DeltaEntry
from edgekit.signing import PublicKey, SigningKey

DELTAS_FROM = 3
# A delta costs a device time and memory; one that saves little is not worth them.
MAX_DELTA_SHARE = 0.8

# Which bin a path falls into depends on no key.
_BINS = SuccinctRoles([], 1, roles.BIN_BITS, roles.RELEASES)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle in the repository.

    Attributes:
        path: target path.
        sha256: of the file.
    """

    path: str
    sha256: str
    size_bytes: int
    custom: Custom

    @property
    def key(self) -> tuple[str, str, str]:
        """Name, version and profile."""
        return released.parts(self.path)


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """What publishing did.

    Attributes:
        new: whether it was not there before.
    """

    entry: Entry
    new: bool


def publish(
    folder: FleetFolder,
    path: Path,
    *,
    clock: Clock,
    candidate: bool = False,
    deltas: bool = True,
    release_key: Path | None = None,
) -> Added:
    """Put a bundle into the repository and sign for it.

    Args:
        folder: of the fleet, with the online key in its place.
        path: `.edge` file; it stays where it is.
        clock: gives the expiries.
        candidate: sign as the coordinator, below `candidates/`, and not as a release.
        deltas: make deltas from the versions before.
        release_key: file of the key that signs releases, where it is not in the folder.

    Raises:
        BundleError: it breaks a rule of the format.
        UntrustedError: another key than the role's signed it.
        FleetError: a key is missing or is not the role's, or the version was published with
            another content.
    """
    role = roles.CANDIDATES if candidate else roles.RELEASES
    key_file = folder.control_key if candidate else release_key or folder.release_key
    role_key = signers.read(key_file, role=role)
    online = signers.read(folder.online_key, role=roles.TIMESTAMP)
    entry = _checked(path, SigningKey.read(key_file).public, candidate=candidate)
    with locked(folder):
        editor = Editor(folder, clock=clock)
        if role_key.public_key.keyid not in editor.delegated(role):
            raise FleetError(
                f"{key_file} is not the key that signs {role} of this fleet",
                hint="edgekit fleet refresh DIR ends an exchange of keys that was cut off",
            )
        known = {item.path: item for item in entries(editor)}
        same = known.get(entry.path)
        if same is not None and same.custom.digest == entry.custom.digest:
            return Added(entry=same, new=False)
        if same is not None:
            name, version, profile = entry.key
            raise FleetError(
                f"{name} {version} for {profile} is published already, "
                f"with digest {same.custom.digest}",
                hint="build with a higher --version",
            )
        stored = place(folder, path, entry.path, sha256=entry.sha256)
        if deltas:
            made = _deltas(folder, stored, entry, list(known.values()))
            entry = msgspec.structs.replace(
                entry, custom=msgspec.structs.replace(entry.custom, deltas=made)
            )
        _add(editor, entry, role_key)
        editor.commit([online])
        sweep(folder, editor)
    return Added(entry=entry, new=True)


def entries(editor: Editor) -> list[Entry]:
    """Every bundle in the repository; what is no bundle of ours is left out."""
    found = []
    for role in editor.targets_roles():
        for path, target in editor.read(role).signed.targets.items():
            if path.endswith(released.SUFFIX):
                raw = target.unrecognized_fields.get("custom")
                found.append(
                    Entry(
                        path=path,
                        sha256=target.hashes["sha256"],
                        size_bytes=target.length,
                        custom=msgspec.convert(raw, Custom),
                    )
                )
    return found


def place(folder: FleetFolder, source: Path, path: str, *, sha256: str) -> Path:
    """Copy a file to where devices fetch the target `path`, and return where that is."""
    stored = folder.repository / released.stored(path, sha256)
    if not stored.exists():
        with storage.replacing(stored) as file:
            for chunk in storage.chunks(source):
                file.write(chunk)
    return stored


def role_of(path: str) -> str:
    """The role that signs for a target path."""
    if path.startswith(released.CANDIDATES):
        return roles.CANDIDATES
    return _BINS.get_role_for_target(path)


def _add(editor: Editor, entry: Entry, signer: Signer) -> None:
    targets = [_target(entry.path, entry.sha256, entry.size_bytes, custom=entry.custom)]
    targets += [_target(item.path, item.sha256, item.size_bytes) for item in entry.custom.deltas]
    for target in targets:
        role = role_of(target.path)
        editor.read(role).signed.targets[target.path] = target
        editor.change(role, signer)


def _target(path: str, sha256: str, size_bytes: int, *, custom: Custom | None = None) -> TargetFile:
    fields = {} if custom is None else {"custom": msgspec.to_builtins(custom)}
    return TargetFile(size_bytes, {"sha256": sha256}, path, fields)


def _checked(path: Path, trusted: PublicKey, *, candidate: bool) -> Entry:
    with Bundle.open(path) as opened:
        opened.verify([trusted])
        manifest, digest = opened.manifest, opened.digest
    described = bundle.describe(path)
    target = released.bundle_path(
        name=manifest.name,
        version=manifest.version,
        profile=manifest.profile.name,
        candidate=candidate,
    )
    return Entry(
        path=released.check_path(target),
        sha256=described.sha256,
        size_bytes=described.size_bytes,
        custom=Custom(digest=digest),
    )


def _deltas(
    folder: FleetFolder, new: Path, entry: Entry, known: Sequence[Entry]
) -> tuple[DeltaEntry, ...]:
    """Deltas from the newest versions of the same model and profile, where they are worth it."""
    name, _, profile = entry.key
    before = [item for item in known if (item.key[0], item.key[2]) == (name, profile)]
    before.sort(key=lambda item: Version(item.key[1]), reverse=True)
    made: list[DeltaEntry] = []
    for base in before[:DELTAS_FROM]:
        found = _delta(folder, base, new, entry)
        if found is not None and found.path not in {item.path for item in made}:
            made.append(found)
    return tuple(made)


def _delta(folder: FleetFolder, base: Entry, new: Path, entry: Entry) -> DeltaEntry | None:
    old = folder.repository / released.stored(base.path, base.sha256)
    work = folder.path / ".publishing.delta"
    try:
        report = delta.make(old, new, work)
        if report.size_bytes > MAX_DELTA_SHARE * entry.size_bytes:
            return None
        path = released.delta_path(entry.path, base=base.custom.digest)
        place(folder, work, path, sha256=report.sha256)
    except delta.NotSmaller:
        return None
    finally:
        work.unlink(missing_ok=True)
    return DeltaEntry(
        base=base.custom.digest, path=path, sha256=report.sha256, size_bytes=report.size_bytes
    )
