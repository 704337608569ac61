"""Wheels: which packages a board needs, from what its profile says; no index is asked here.

An engine that the profile takes from a vendor is named and left out, because no package index has
it; where the same engine also has a build for the CPU in the index, that one is taken meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from edgekit.errors import UsageError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit.structs import Strict
from edgekit_runtime.board import ship
from edgekit_runtime.board.ship import DISTRIBUTION
from edgekit_runtime.engines import plugins, rknn
from edgekit_runtime.install.profiles import require_daemon

# Engine to its package, where an index has one.
PACKAGES: Mapping[str, str] = {**ship.PACKAGES, "rknn": rknn.PACKAGE}
_INDEX = "PyPI"
# What runs on any board; the extra `device` brings it.
_COMMON = "onnxruntime"
# Systems by what profiles call them, and the C library of each (glibc 2.x).
_SYSTEMS: Mapping[str, int] = {
    "Ubuntu 20.04": 31,
    "Ubuntu 22.04": 35,
    "Ubuntu 24.04": 39,
    "Debian 11": 31,
    "Debian 12": 36,
    "Debian 13": 41,
    "bullseye": 31,
    "bookworm": 36,
    "trixie": 41,
    "Yocto kirkstone": 35,
    "Yocto scarthgap": 39,
}
# The oldest that the engines have wheels for, and so what is assumed of a system not known here.
_OLDEST_GLIBC = 28
_FIRST_TAGGED = 17


class Choice(Strict, frozen=True, kw_only=True):
    """What the caller asks for beyond the profile.

    Attributes:
        engines: only these of the profile; none named for the first, and the one that every board
            has.
        extras: of edgekit-ml, beside `device`.
        python, glibc: of the board, where they differ from the profile's.
    """

    engines: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    python: str | None = None
    glibc: str | None = None


class Missing(Strict, frozen=True, kw_only=True):
    """What no index has, and where the profile says that it comes from."""

    what: str
    source: str


class Goal(Strict, frozen=True, kw_only=True):
    """What to collect.

    Attributes:
        glibc_minor: of the board's C library, as 36 of 2.36.
        requirements: as pip takes them.
        uses_system: whether the environment must see the system's own packages, as the vendor of
            an engine installs it there.
    """

    machine: str
    python: str
    glibc_minor: int
    requirements: tuple[str, ...]
    uses_system: bool
    missing: tuple[Missing, ...]

    @property
    def platforms(self) -> tuple[str, ...]:
        """The tags of wheels that run there, newest first."""
        newest_first = range(self.glibc_minor, _FIRST_TAGGED - 1, -1)
        tags = (f"manylinux_2_{minor}_{self.machine}" for minor in newest_first)
        return (*tags, f"manylinux2014_{self.machine}", f"linux_{self.machine}")

    @property
    def resolver_platform(self) -> str:
        """The board as uv names it; uv knows these versions of the C library."""
        known = [m for m in (17, 28, *range(31, 41)) if m <= self.glibc_minor]
        return f"{self.machine}-manylinux_2_{known[-1]}"

    @property
    def text(self) -> str:
        """The board in one line."""
        return f"{self.machine}, Python {self.python}, glibc 2.{self.glibc_minor} or newer"


def goal(profile: DeviceProfile, choice: Choice) -> Goal:
    """What a board of this profile needs.

    Raises:
        UsageError: the daemon does not run on it, or an engine is not the profile's.
    """
    python = choice.python or profile.daemon_python
    require_daemon(profile)
    if python is None:
        raise UsageError(f"profile {profile.name} says no Python", hint="--python 3.11")
    if re.fullmatch(r"3\.\d+", python) is None:
        raise UsageError(f"--python {python!r} is not a version such as 3.11")
    specs = _chosen(profile, choice.engines)
    extras = ",".join(("device", *choice.extras))
    return Goal(
        machine=profile.architecture,
        python=python,
        glibc_minor=glibc_minor(choice.glibc, system=profile.os),
        requirements=(f"{DISTRIBUTION}[{extras}]", *dict.fromkeys(_requirements(specs))),
        uses_system=any(not is_indexed(spec) for spec in specs),
        missing=tuple(_missing(specs, profile)),
    )


def glibc_minor(asked: str | None, *, system: str | None) -> int:
    """The C library to fetch for: the one asked for, else the oldest that the profile names.

    Raises:
        UsageError: what was asked is no version that wheels are tagged with.
    """
    if asked is not None:
        found = re.fullmatch(r"2\.(\d+)", asked)
        if found is None or int(found[1]) < _FIRST_TAGGED:
            raise UsageError(f"--glibc {asked!r} is not a version such as 2.36")
        return int(found[1])
    told = re.search(r"glibc 2\.(\d+)", system or "")
    if told is not None:
        return int(told[1])
    named = [minor for name, minor in _SYSTEMS.items() if name in (system or "")]
    return min(named, default=_OLDEST_GLIBC)


def name_of(wheel: PurePath) -> tuple[str, str]:
    """Package and version of a wheel, as an index names the package.

    Raises:
        UsageError: it is not called as a wheel is.
    """
    parts = wheel.name.removesuffix(".whl").split("-")
    if wheel.suffix != ".whl" or len(parts) not in (5, 6):
        raise UsageError(f"{wheel} is not called as a wheel is: NAME-VERSION-…-PLATFORM.whl")
    return normal(parts[0]), parts[1]


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def replaced_by(own: Sequence[PurePath]) -> tuple[str, ...]:
    """Packages of engines that wheels of another name stand for, as onnxruntime-gpu does."""
    names = [name_of(wheel)[0] for wheel in own]
    return tuple(
        package
        for package in PACKAGES.values()
        if any(name.startswith(f"{package}-") and name not in plugin_packages() for name in names)
    )


def plugin_packages() -> tuple[str, ...]:
    """Packages that add a provider to an engine rather than stand in its place."""
    return tuple(normal(module) for module in plugins.PACKAGES.values())


def default_engines(profile: DeviceProfile) -> tuple[str, ...]:
    """What a board has when nobody chooses: the profile's first engine, and the common one."""
    known = [spec.name for spec in profile.engines]
    return tuple(name for name in dict.fromkeys((known[0], _COMMON)) if name in known)


def _chosen(profile: DeviceProfile, engines: Sequence[str]) -> list[EngineSpec]:
    known = [spec.name for spec in profile.engines]
    for name in engines:
        if name not in known:
            raise UsageError(
                f"profile {profile.name} has no engine {name}",
                hint=f"it has {', '.join(dict.fromkeys(known))}",
            )
    wanted = engines or default_engines(profile)
    return [spec for spec in profile.engines if spec.name in wanted]


def is_indexed(spec: EngineSpec) -> bool:
    """Whether a package index has an engine as the profile wants it."""
    return spec.wheels.startswith(_INDEX) and spec.name in PACKAGES


def _requirements(specs: Sequence[EngineSpec]) -> Iterator[str]:
    for spec in specs:
        if not is_indexed(spec):
            continue
        yield f"{PACKAGES[spec.name]}=={spec.version}.*"
        for provider in spec.providers:
            if provider.name in plugins.PACKAGES:
                yield normal(plugins.PACKAGES[provider.name])


def _missing(specs: Sequence[EngineSpec], profile: DeviceProfile) -> Iterator[Missing]:
    for spec in specs:
        what = f"{spec.name} {spec.version} for the {spec.accelerator}"
        _, _, further = spec.wheels.partition("; ")
        if not is_indexed(spec):
            yield Missing(what=what, source=spec.wheels)
        elif further:
            # What stands behind the package: a library of the vendor's beside it.
            yield Missing(what=what, source=further)
    for name, version in profile.drivers.items():
        yield Missing(what=f"{name} {version}", source=f"the board's system: {profile.os}")
