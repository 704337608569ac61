"""Board: everything that is written for a board, top down: configuration, profile, user, unit.

The unit follows from the configuration that the daemon will read, so the two agree also where the
owner has edited one of them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekit.errors import ConfigError, UsageError
from edgekit.profile import DeviceProfile
from edgekit.structs import Strict
from edgekit_runtime.config import Config
from edgekit_runtime.install import access, accounts, files, profiles, settings, unit
from edgekit_runtime.install.files import Planned, Written
from edgekit_runtime.install.settings import Wishes

PROGRAM = "edgekitd"
_HOLD_BACK = 0.9


class Target(Strict, frozen=True, kw_only=True):
    """Where an installation goes.

    Attributes:
        root: of the system: `/`, or where the image of a board is mounted.
        program: `edgekitd` on the board.
        memory_mb: that the service may take; None for a share of the board's memory.
    """

    config: Path
    program: Path
    user: str = "edgekit"
    root: Path = Path("/")
    memory_mb: int | None = None


class Installation(Strict, frozen=True, kw_only=True):
    """What was done, or would be.

    Attributes:
        next: commands that remain, in order.
    """

    dry_run: bool
    files: tuple[Written, ...]
    notes: tuple[str, ...]
    next: tuple[str, ...]


def install(target: Target, wishes: Wishes, *, dry_run: bool) -> Installation:
    """Write what the daemon needs to run as a service.

    Raises:
        UsageError: a name, path or profile is missing or not right.
        StorageError: a file cannot be written.
    """
    accounts.check_user(target.user)
    for path in (target.config, target.program):
        if not path.is_absolute():
            raise UsageError(f"{path} must be an absolute path of the board")
    config_file = files.below(target.root, target.config)
    asked = wishes.state
    wishes = settings.filled(wishes, settings.standing(config_file))
    assert wishes.profile is not None
    profile = profiles.find(wishes.profile, folder=config_file.parent)
    profiles.require_daemon(profile)
    # A file may have been named, and the configuration holds a name.
    text = settings.text(msgspec.structs.replace(wishes, profile=profile.name))
    first = Planned(path=target.config, text=text)
    outcome = files.decide(first, files.read(config_file))
    config = settings.effective(target.config, text, root=target.root, outcome=outcome)
    if asked is not None and config.state.folder != asked:
        raise ConfigError(
            f"{target.config} was edited and says that [state] folder is {config.state.folder},"
            f" not {asked}",
            hint="change it there, or leave --state out",
        )
    touched = access.access_of(profile)
    service = _service(target, config, touched)
    plan = (
        first,
        Planned(
            path=target.config.with_name(profiles.FILE),
            text=profiles.encode(profile),
            has_stamp=False,
        ),
        Planned(
            path=accounts.USERS,
            text=accounts.users(target.user, state=service.state, groups=touched.groups),
        ),
        Planned(path=accounts.FOLDERS, text=accounts.folders(target.user, state=service.state)),
        Planned(path=unit.FOLDER / unit.NAME, text=unit.text(service)),
    )
    return Installation(
        dry_run=dry_run,
        files=files.write(plan, root=target.root, dry_run=dry_run),
        notes=tuple(_notes(target, config, profile)),
        next=tuple(_next(target)),
    )


def this_program() -> Path:
    """`edgekitd` of the environment that runs this."""
    beside = Path(sys.executable).parent / PROGRAM
    found = beside if beside.exists() else shutil.which(PROGRAM)
    if found is None:
        raise UsageError(f"{PROGRAM} is not beside this Python", hint="--program names it")
    return Path(found)


def _service(target: Target, config: Config, touched: access.Access) -> unit.Service:
    serve = config.serve
    writes = [path.parent for path in (serve.unix, serve.bell) if path is not None]
    identity = config.fleet.identity if config.fleet else None
    if identity is not None and config.state.folder not in identity.parents:
        # A certificate that is renewed goes beside the one before it.
        writes.append(identity.parent)
    reads = (
        *config.trust.keys,
        *((serve.tokens,) if serve.tokens else ()),
        *(serve.tls.files if serve.tls else ()),
        *((config.training.data,) if config.training else ()),
    )
    service = unit.Service(
        program=target.program,
        config=target.config,
        state=config.state.folder,
        user=target.user,
        access=touched,
        writes=tuple(writes),
        reads=reads,
    )
    if target.memory_mb is None:
        return service
    return msgspec.structs.replace(
        service,
        memory_high=f"{int(target.memory_mb * _HOLD_BACK)}M",
        memory_max=f"{target.memory_mb}M",
    )


def _notes(target: Target, config: Config, profile: DeviceProfile) -> Iterator[str]:
    container = profile.container.image if profile.container else None
    if config.device.profile != profile.name:
        yield (
            f"{target.config} says profile {config.device.profile}, the unit is for {profile.name}"
        )
    if container is not None:
        yield f"this profile's daemon runs in a container ({container}): install there"
    if not files.below(target.root, target.program).exists():
        yield f"{target.program} is not there yet"
    if not config.trust.keys and config.fleet is None:
        yield (
            "no bundle may run yet: --trust KEY names who signs them, or `edgekit device enroll`"
            " as that user joins a fleet, and then --enrolled says so"
        )


def _next(target: Target) -> Iterator[str]:
    here = target.root == Path("/")
    where = "" if here else f" --root={target.root}"
    yield f"systemd-sysusers{where} {accounts.USERS}"
    yield f"systemd-tmpfiles{where} --create {accounts.FOLDERS}"
    if here:
        yield "systemctl daemon-reload"
        yield f"systemctl enable --now {unit.NAME}"
    else:
        yield f"systemctl{where} enable {unit.NAME}"
