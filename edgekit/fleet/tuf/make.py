"""Make: the first state of a fleet's repository, with its keys from the fleet's folder."""

from __future__ import annotations

from collections.abc import Sequence

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    SuccinctRoles,
    Targets,
    Timestamp,
)

from edgekit import storage
from edgekit.clock import Clock, SystemClock
from edgekit.errors import FleetError
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.tuf import editor, roles, signers


def make(folder: FleetFolder, *, clock: Clock | None = None) -> None:
    """Sign and write an empty repository, and copy its root to the trust that devices get.

    All keys must be in their places. The timestamp is written last; a repository without one was
    not made to its end and is made again.

    Raises:
        FleetError: a key is missing, or a repository is there already.
        StorageError: the folder cannot be written.
    """
    timestamp_file = folder.metadata / f"{roles.TIMESTAMP}.json"
    if timestamp_file.exists():
        raise FleetError(
            f"{folder.repository} holds a repository already",
            hint="edgekit publish --fleet adds to it",
        )
    clock = clock or SystemClock()
    at = roles.now(clock)
    storage.make_folder(folder.targets)
    root_signers = [signers.read(path, role=roles.ROOT) for path in folder.root_keys]
    targets_signer = signers.read(folder.targets_key, role=roles.TARGETS)
    release = signers.read(folder.release_key, role=roles.RELEASES)
    candidates = signers.read(folder.control_key, role=roles.CANDIDATES)
    online = signers.read(folder.online_key, role=roles.TIMESTAMP)

    def put(role: str, signed: editor.S, by: Sequence[Signer], *, name: str = "") -> bytes:
        signed.expires = at + roles.valid_for(role)
        metadata = Metadata(signed)
        for signer in by:
            metadata.sign(signer, append=True)
        name = name or f"{signed.version}.{role}.json"
        return editor.write(folder.metadata / name, metadata)

    bins = bins_of(release.public_key)
    delegating = Delegations(signers.public(release), succinct_roles=bins)
    top = delegations_of(release.public_key, candidates.public_key)
    targets = {
        **{name: (Targets(), release) for name in bins.get_roles()},
        roles.RELEASES: (Targets(delegations=delegating), release),
        roles.CANDIDATES: (Targets(), candidates),
        roles.TARGETS: (Targets(delegations=top), targets_signer),
    }
    snapshot = Snapshot(meta={})
    # Each has a version of its own, for the reason that `editor` gives.
    for version, (role, (signed, signer)) in enumerate(targets.items(), start=1):
        signed.version = version
        put(role, signed, [signer])
        snapshot.meta[f"{role}.json"] = MetaFile(version)
    raw = put(roles.SNAPSHOT, snapshot, [online])
    root = Root(
        keys=signers.public(*root_signers, targets_signer, online),
        roles={
            roles.ROOT: Role(list(signers.public(*root_signers)), roles.ROOT_THRESHOLD),
            roles.TARGETS: Role([targets_signer.public_key.keyid], 1),
            roles.SNAPSHOT: Role([online.public_key.keyid], 1),
            roles.TIMESTAMP: Role([online.public_key.keyid], 1),
        },
    )
    storage.write(folder.trust_root, put(roles.ROOT, root, root_signers))
    timestamp = Timestamp(
        snapshot_meta=MetaFile.from_data(1, raw, ["sha256"]),
        unrecognized_fields={roles.SIGNED_AT: clock.now_ms()},
    )
    put(roles.TIMESTAMP, timestamp, [online], name=timestamp_file.name)


def bins_of(*keys: Key) -> SuccinctRoles:
    """The bins of releases, signed by one of `keys`."""
    return SuccinctRoles([key.keyid for key in keys], 1, roles.BIN_BITS, roles.RELEASES)


def delegations_of(release: Key, candidates: Key) -> Delegations:
    """What the top-level targets delegate; releases are asked first."""
    return Delegations(
        {key.keyid: key for key in (release, candidates)},
        roles={
            roles.RELEASES: DelegatedRole(
                roles.RELEASES,
                [release.keyid],
                1,
                terminating=False,
                paths=list(roles.RELEASE_PATHS),
            ),
            roles.CANDIDATES: DelegatedRole(
                roles.CANDIDATES,
                [candidates.keyid],
                1,
                terminating=True,
                paths=list(roles.CANDIDATE_PATHS),
            ),
        },
    )
