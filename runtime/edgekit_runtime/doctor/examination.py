"""Examination: a whole board against its profile, from its hardware to the bundles in its slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from edgekit.errors import ProfileError
from edgekit.profile import DeviceProfile
from edgekit.structs import Strict
from edgekit_runtime.board.ship import DISTRIBUTION
from edgekit_runtime.doctor import checks, facts, installed
from edgekit_runtime.doctor.facts import Facts
from edgekit_runtime.doctor.findings import Finding
from edgekit_runtime.doctor.installed import Held
from edgekit_runtime.doctor.ties import Tie
from edgekit_runtime.install import profiles, unit

_UNITS = (unit.FOLDER, Path("/lib/systemd/system"), Path("/usr/lib/systemd/system"))


class Examination(Strict, frozen=True, kw_only=True):
    """All that the doctor says.

    Attributes:
        ties: of every variant in a slot, what it hangs on.
    """

    profile: str
    findings: tuple[Finding, ...]
    ties: tuple[Tie, ...]


def profile_for(name: str, *, folder: Path, state: Path) -> DeviceProfile:
    """The profile to hold a board against.

    Args:
        name: of the profile, or a JSON file.
        folder: of the configuration, where an installation leaves the profile.
        state: whose bundles carry the profile that they were built for.

    Raises:
        ProfileError: none of these has it.
    """
    try:
        return profiles.find(name, folder=folder)
    except ProfileError:
        for held in installed.held(state):
            if held.manifest is not None and held.manifest.profile.name == name:
                return held.manifest.profile
        raise


def examine(
    profile: DeviceProfile,
    *,
    state: Path,
    belongs: Iterable[Finding] = (),
    root: Path = Path("/"),
) -> Examination:
    """Look at this board; nothing is changed.

    Args:
        belongs: what was found of its keys, its identity and its link.
        state: the daemon's folder.
        root: where the board's files are.

    Raises:
        StorageError: a record of the slots cannot be read.
    """
    found = facts.gather(libraries=checks.libraries_of(profile), root=root)
    slots = installed.held(state)
    ties = tuple(
        tie for held in slots for tie in installed.tied(held, state, drivers=found.drivers)
    )
    findings = (
        checks.board(profile, found, is_this_machine=profile.is_this_machine()),
        checks.python(profile, found),
        checks.libc(profile, found),
        *checks.packages(_required(), found),
        *checks.engines(profile, found, needed=tuple(tie.engine for tie in ties)),
        *checks.drivers(profile, found),
        *checks.libraries(profile, found),
        *checks.devices(profile, found),
        *checks.firmware(profile, found),
        *_service(root),
        *_owners(state),
        *belongs,
        *(_slot(held, ties, found) for held in slots),
    )
    return Examination(profile=profile.name, findings=findings, ties=ties)


def _required() -> Sequence[str]:
    """What edgekit's own record says that it needs; nothing where it runs without a record."""
    try:
        return metadata.requires(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        return ()


def _service(root: Path) -> Iterator[Finding]:
    places = [place / unit.NAME for place in _UNITS]
    found = next((place for place in places if (root / place.relative_to("/")).is_file()), None)
    yield Finding(
        area="service",
        subject=unit.NAME,
        status="ok" if found else "note",
        found=str(found) if found else None,
        detail="" if found else "no service starts the daemon",
        command=None if found else "edgekit device install",
    )


def _owners(state: Path) -> Iterator[Finding]:
    """Whether all of the state belongs to whoever owns its folder: the daemon must write there."""
    if not state.is_dir():
        return
    owner = state.stat().st_uid
    foreign = [path for path in state.rglob("*") if _owner(path) not in (owner, None)]
    if foreign:
        yield Finding(
            area="service",
            subject=str(state),
            status="wrong",
            detail=f"{len(foreign)} files are not its owner's, {foreign[0]} for one",
            command=f"chown -R --reference={state} {state}",
        )


def _owner(path: Path) -> int | None:
    """Whose a file is; `None` for one that has gone meanwhile, beside a daemon that works."""
    try:
        return path.lstat().st_uid
    except OSError:
        return None


def _slot(held: Held, ties: Sequence[Tie], found: Facts) -> Finding:
    where = f"slot {held.slot}{', active' if held.active else ''}"
    if held.manifest is None:
        return Finding(
            area="bundle",
            subject=f"{held.model} ({where})",
            status="wrong",
            detail=held.problem,
            command=f"edgekit device rollback {held.model}" if held.active else None,
        )
    subject = f"{held.manifest.name} {held.manifest.version} ({where})"
    own = [
        tie
        for tie in ties
        if (tie.model, tie.version, tie.slot)
        == (held.manifest.name, held.manifest.version, held.slot)
    ]
    broken = [tie for tie in own if tie.problem or tie.engine not in found.engines]
    if len(broken) == len(own):
        reasons = [tie.problem or f"{tie.engine} is not here" for tie in broken]
        detail = f"none of its variants runs: {'; '.join(dict.fromkeys(reasons))}"
        return Finding(area="bundle", subject=subject, status="wrong", detail=detail)
    again = [tie.variant for tie in own if tie.changed]
    lost = [f"{tie.variant} ({tie.problem or f'no {tie.engine}'})" for tie in broken]
    notes = [
        *([f"do not run here: {', '.join(lost)}"] if lost else []),
        *([f"compiled anew at the next start: {', '.join(again)}"] if again else []),
    ]
    return Finding(
        area="bundle", subject=subject, status="note" if notes else "ok", detail="; ".join(notes)
    )
