"""Ties: what an installed variant would come to if a driver, a firmware or an engine changed.

Three cases. An artefact that was compiled ahead of time for a chip is read by the vendor's library
only in the versions that it was made for: it breaks. What was compiled on this device is made anew
by the daemon, and takes as long as the first time. What an engine runs on the CPU as it is goes on;
a new engine rounds differently, which golden inputs judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from edgekit.manifest import Manifest, Variant
from edgekit.structs import Strict
from edgekit_runtime.compiled_store import Entry

Change = Literal["breaks", "is compiled again", "goes on"]

_TOOLKIT, _RUNTIME = "rknn-toolkit2", "librknnrt"
# Engines whose artefacts are made ahead of time, and what they are bound to.
_AHEAD: Mapping[str, tuple[str, ...]] = {
    "rknn": ("librknnrt.so", "RKNPU driver"),
    "hailo": ("HailoRT", "Hailo firmware", "Hailo driver"),
}
_AHEAD_BY_PROVIDER: Mapping[str, tuple[str, ...]] = {
    "libedgetpu.so.1": ("libedgetpu",),
    "libethosu_delegate.so": ("libethosu_delegate.so", "Ethos-U driver"),
}
_BLOB = ".blob"


class Tie(Strict, frozen=True, kw_only=True):
    """One variant of an installed bundle.

    Attributes:
        slot: where it lies; `active` where it serves.
        bound_to: what its working hangs on beside its engine.
        on_change: what happens to it if one of these changes.
        takes_s: what compiling it again takes, by the last time; None where it is not known.
        changed: what has changed since it was compiled here, as `name: before -> now`.
        problem: why it does not work now; empty where nothing is known.
        stays: a variant of the bundle that serves in its place, if one goes on.
    """

    model: str
    version: str
    slot: str
    active: bool
    variant: str
    engine: str
    accelerator: str
    bound_to: tuple[str, ...]
    on_change: Change
    takes_s: float | None = None
    changed: tuple[str, ...] = ()
    problem: str = ""
    stays: str | None = None


def change_of(
    variant: Variant, manifest: Manifest, *, holds_context: bool, compiles: bool
) -> tuple[Change, tuple[str, ...]]:
    """What a change does to a variant, and what it is bound to beside its engine.

    Args:
        holds_context: its ONNX file holds what a provider compiled.
        compiles: its engine makes something of it on the device.
    """
    if variant.engine in _AHEAD:
        return "breaks", _AHEAD[variant.engine]
    providers = [
        provider.name
        for spec in manifest.profile.engines
        if (spec.name, spec.accelerator) == (variant.engine, variant.accelerator)
        for provider in spec.providers
    ]
    for name in providers:
        if name in _AHEAD_BY_PROVIDER:
            return "breaks", _AHEAD_BY_PROVIDER[name]
    if variant.artifact.endswith(_BLOB):
        return "breaks", (variant.engine, f"{variant.accelerator.upper()} driver")
    if holds_context:
        return "breaks", tuple(name for name in providers if name != "CPUExecutionProvider")
    if compiles:
        return "is compiled again", (variant.engine, f"{variant.accelerator.upper()} driver")
    if variant.accelerator != "cpu":
        return "goes on", tuple(providers)
    return "goes on", ()


def problem_of(variant: Variant, manifest: Manifest, *, drivers: Mapping[str, str]) -> str:
    """Why a variant does not work with these drivers; empty where nothing speaks against it."""
    toolkit, runtime = manifest.tools.get(_TOOLKIT), drivers.get(_RUNTIME)
    if variant.engine == "rknn" and toolkit and runtime and _order(runtime) < _order(toolkit):
        return f"made by {_TOOLKIT} {toolkit}, and librknnrt.so here is older: {runtime}"
    return ""


def changes(entry: Entry, now: Mapping[str, str], *, engine_version: str) -> tuple[str, ...]:
    """What differs between what an entry was compiled for and this device as it is.

    Args:
        now: device, drivers and libraries as the engine sees them.
    """
    before = {**entry.holds_for.device, entry.holds_for.engine: entry.holds_for.engine_version}
    after = {**now, entry.holds_for.engine: engine_version}
    names = sorted({*before, *after})
    return tuple(
        f"{name}: {before.get(name, 'nothing')} -> {after.get(name, 'nothing')}"
        for name in names
        if before.get(name) != after.get(name)
    )


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
