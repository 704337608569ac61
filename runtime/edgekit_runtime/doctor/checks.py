"""Checks: one small rule for each thing that a profile says of a board."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence

import msgspec
from packaging.requirements import InvalidRequirement, Requirement

from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_runtime.doctor.facts import Facts
from edgekit_runtime.doctor.findings import Finding, Status
from edgekit_runtime.engines import plugins
from edgekit_runtime.install import access, wheels
from edgekit_runtime.install.wheels import normal

FLOOR = (3, 10)
_EXTRA = "device"


def fits(found: str, wanted: str) -> bool:
    """Whether a version is the wanted one or begins with it: `10.3` takes `10.3.0.30`."""
    numbers = re.findall(r"\d+", found)
    asked = re.findall(r"\d+", wanted)
    return numbers[: len(asked)] == asked


def libraries_of(profile: DeviceProfile) -> tuple[str, ...]:
    """Shared libraries that the engines of a profile need from the board's vendor."""
    return tuple(
        dict.fromkeys(p.name for spec in profile.engines for p in spec.providers if ".so" in p.name)
    )


def board(profile: DeviceProfile, facts: Facts, *, is_this_machine: bool) -> Finding:
    """Whether this machine is the board."""
    return Finding(
        area="board",
        subject=profile.name,
        status="ok" if is_this_machine else "wrong",
        found=f"{facts.machine}, {facts.system}",
        wanted=f"{profile.architecture}, {profile.os}" if profile.os else profile.architecture,
        detail=profile.title if is_this_machine else f"this machine is no {profile.title}",
        command=None if is_this_machine else "edgekit device install --profile NAME",
    )


def python(profile: DeviceProfile, facts: Facts) -> Finding:
    """The Python: any from the floor on runs the daemon, the profile's is what was tried."""
    wanted = profile.daemon_python
    version = tuple(int(part) for part in facts.python.split(".")[:2])
    finding = Finding(
        area="python", subject="Python", status="ok", found=facts.python, wanted=wanted
    )
    if version < FLOOR:
        return _changed(
            finding, "wrong", "the daemon needs 3.10 or newer", command="apt install python3"
        )
    if wanted is not None and not fits(facts.python, wanted):
        return _changed(finding, "note", f"its wheels are made for {facts.python}, not {wanted}")
    return finding


def libc(profile: DeviceProfile, facts: Facts) -> Finding:
    """The C library, against which wheels are made."""
    wanted = wheels.glibc_minor(None, system=profile.os)
    minor = re.fullmatch(r"2\.(\d+)", facts.glibc or "")
    finding = Finding(
        area="python",
        subject="C library",
        status="ok",
        found=f"glibc {facts.glibc}" if facts.glibc else "another one than glibc",
        wanted=f"glibc 2.{wanted} or newer",
    )
    if minor is None:
        return _changed(finding, "wrong", "no engine has wheels for it")
    if int(minor[1]) < wanted:
        return _changed(
            finding,
            "note",
            "a wheelhouse for the profile may not fit",
            command=f"edgekit device wheelhouse --glibc {facts.glibc} …  (on a workstation)",
        )
    return finding


def packages(required: Sequence[str], facts: Facts) -> Iterator[Finding]:
    """Python packages that edgekit says it needs on a board.

    Args:
        required: as a distribution's record lists them.
    """
    for line in required:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": _EXTRA}):
            continue
        version = facts.packages.get(normal(wanted.name))
        good = version is not None and wanted.specifier.contains(version, prereleases=True)
        yield Finding(
            area="package",
            subject=wanted.name,
            status="ok" if good else "wrong",
            found=version,
            wanted=str(wanted.specifier) or None,
            detail="" if good else "missing" if version is None else "another version",
            command=None if good else _pip(f"{wanted.name}{wanted.specifier}", facts),
        )


def engines(profile: DeviceProfile, facts: Facts, *, needed: Sequence[str]) -> Iterator[Finding]:
    """Engines of the profile; those that nothing needs may be left out.

    Args:
        needed: engines that installed bundles run in.
    """
    must = {*needed, *wheels.default_engines(profile)}
    for spec in profile.engines:
        version = facts.engines.get(spec.name)
        finding = Finding(
            area="engine",
            subject=f"{spec.name} ({spec.accelerator})",
            status="ok",
            found=version,
            wanted=spec.version,
        )
        if version is None:
            yield _changed(
                finding,
                "wrong" if spec.name in must else "note",
                "missing" if spec.name in must else "not installed, and no bundle here needs it",
                command=_source(spec, facts),
            )
        elif not fits(version, spec.version):
            yield _changed(
                finding,
                "wrong" if spec.accelerator != "cpu" else "note",
                "another version than bundles for this profile are made for",
                command=_source(spec, facts),
            )
        else:
            yield _with_providers(finding, spec, facts)


def drivers(profile: DeviceProfile, facts: Facts) -> Iterator[Finding]:
    """Drivers that the profile names."""
    for name, wanted in profile.drivers.items():
        version = facts.drivers.get(name)
        finding = Finding(area="driver", subject=name, status="ok", found=version, wanted=wanted)
        if version is None:
            yield _changed(
                finding, "wrong", "not found on this board", command=_of_system(profile, name)
            )
        elif not fits(version, wanted):
            yield _changed(finding, "wrong", "another version", command=_of_system(profile, name))
        else:
            yield finding


def libraries(profile: DeviceProfile, facts: Facts) -> Iterator[Finding]:
    """Libraries of the accelerator's vendor, which no package index has."""
    for name in libraries_of(profile):
        path = facts.libraries.get(name)
        version = facts.drivers.get("librknnrt") if name == "librknnrt.so" else None
        yield Finding(
            area="driver",
            subject=name,
            status="ok" if path else "wrong",
            found=" ".join(filter(None, (path, version))) or None,
            detail="" if path else "not found",
            command=None if path else _of_system(profile, name),
        )


def devices(profile: DeviceProfile, facts: Facts) -> Iterator[Finding]:
    """Whether the kernel shows a device of the accelerator."""
    nodes = access.access_of(profile).nodes
    if nodes is None:
        yield Finding(
            area="driver",
            subject="device nodes",
            status="unknown",
            detail="the names of this board's devices are not known to edgekit",
        )
    elif nodes:
        there = [
            device
            for device in facts.devices
            if any(fnmatch.fnmatchcase(device, node) for node in nodes)
        ]
        yield Finding(
            area="driver",
            subject="device nodes",
            status="ok" if there else "wrong",
            found=", ".join(there) or None,
            wanted=" or ".join(nodes),
            detail="" if there else "the kernel's driver is not loaded, or finds no device",
            command=None if there else "dmesg | tail -n 50",
        )


def firmware(profile: DeviceProfile, facts: Facts) -> Iterator[Finding]:
    """Firmware and board support, where the profile or the board says something of it."""
    wanted = re.search(r"Jetson Linux (\d+)", profile.os or "")
    for name, version in facts.firmware.items():
        asked = wanted[1] if wanted and name == "Jetson Linux" else None
        good = asked is None or fits(version, asked)
        yield Finding(
            area="firmware",
            subject=name,
            status="ok" if good else "wrong",
            found=version,
            wanted=asked,
            detail="" if good else "the board's system is of another JetPack",
        )
    if wanted and "Jetson Linux" not in facts.firmware:
        yield Finding(
            area="firmware",
            subject="Jetson Linux",
            status="wrong",
            wanted=wanted[1],
            detail="no /etc/nv_tegra_release",
        )
    if any(spec.name == "hailo" for spec in profile.engines):
        yield Finding(
            area="firmware",
            subject="Hailo",
            status="unknown",
            detail="only the chip tells; it must be of HailoRT's version",
            command="hailortcli fw-control identify",
        )


def _with_providers(finding: Finding, spec: EngineSpec, facts: Facts) -> Finding:
    """Providers that onnxruntime must have for an accelerator; others are judged by libraries."""
    if spec.name != "onnxruntime":
        return finding
    for provider in spec.providers:
        plugin = plugins.PACKAGES.get(provider.name)
        there = provider.name in facts.providers or (
            plugin is not None and normal(plugin) in facts.packages
        )
        if not there:
            return _changed(
                finding, "wrong", f"it lacks {provider.name}", command=_source(spec, facts)
            )
    if spec.accelerator != "cpu":
        # A build for another GPU lists its providers too, and fails when a kernel runs.
        return _changed(
            finding,
            "unknown",
            "its providers are listed; only golden inputs show that they run here",
            command="edgekit verify BUNDLE",
        )
    return finding


def _source(spec: EngineSpec, facts: Facts) -> str:
    package = wheels.PACKAGES.get(spec.name)
    if package is None or not wheels.is_indexed(spec):
        return f"install it from: {spec.wheels}"
    return _pip(f"{package}=={spec.version}.*", facts)


def _pip(requirement: str, facts: Facts) -> str:
    if "pip" in facts.packages:
        return f"{facts.interpreter} -m pip install '{requirement}'"
    return "sh install.sh  (of a new `edgekit device wheelhouse`)"


def _of_system(profile: DeviceProfile, name: str) -> str:
    sources = [
        spec.wheels
        for spec in profile.engines
        if spec.accelerator != "cpu" and any(p.name == name for p in spec.providers)
    ]
    return f"install it from: {(sources or [profile.os or 'the board maker'])[0]}"


def _changed(
    finding: Finding, status: Status, detail: str, *, command: str | None = None
) -> Finding:
    return msgspec.structs.replace(finding, status=status, detail=detail, command=command)
