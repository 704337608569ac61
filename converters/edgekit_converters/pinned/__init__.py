"""Pinned: what ships, run once more as the board does: its engine's version, or its instructions.

An artefact that the engine here runs may not load in the board's, or compute something else there.
So its golden samples are run in an environment that holds the board's version, or, for a CPU of
another kind, by the engine's own build for it under emulation: that shows what is computed, and
never how fast. Accelerators and their drivers stay unseen. Where answers differ by more than right
implementations do, the first operator whose own answers differ is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BuildError, EngineNotInstalled
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit.structs import Strict
from edgekit_converters.pinned import onnx_file, tflite_file
from edgekit_converters.pinned.files import Opened, run
from edgekit_converters.targets import Product
from edgekit_converters.toolchains import TOOLCHAINS, emulation, toolchain
from edgekit_converters.toolchains.driving import LimitBroken, Limits
from edgekit_converters.toolchains.environments import state
from edgekit_converters.toolchains.pins import versions
from edgekit_runtime.engines import ENGINES

# Below this share of a tensor's own size two implementations of an operator in float are equal.
_SAME = 1e-3
# The value type of a quantised tensor differs by one step between right implementations.
_STEPS = 2
# Emulation is hundreds of times slower; samples are left out rather than waited for.
_EMULATED_S = 5.0
_EMULATED_LIMITS = Limits(time_s=180.0)
_ARM64 = "arm64"
_LEGACY = "tflite-runtime"

Arrays = Mapping[str, NDArray[Any]]


class Rerun(Strict, frozen=True, kw_only=True):
    """What running an artefact as the board does showed.

    Attributes:
        version: of the engine that ran it, and of what machine it is; None where none did.
        problem: why the board would not give the right answers; None where it would.
        note: what a reader should know; empty where there is nothing.
    """

    version: str | None = None
    problem: str | None = None
    note: str = ""


def environment_for(engine: EngineSpec, *, profile: DeviceProfile) -> str | None:
    """The tool chain that runs artefacts of an engine as the board does.

    The board's version of the engine goes before its instructions, where no environment has both.
    None where this machine's own environment is as good, or where the engine has no CPU version.
    """
    emulated = _ARM64 if _is_emulated(engine, profile) else None
    if engine.name == "litert":
        return emulated
    if engine.name not in ("onnxruntime", _LEGACY):
        return None
    own = f"{engine.name}-{'.'.join(engine.version.split('.')[:2])}"
    if engine.name == _LEGACY:
        return _LEGACY if _is_version(versions([_LEGACY])[_LEGACY], engine) else own
    if _is_version(_version_here(engine.name), engine):
        return emulated
    return own if own in TOOLCHAINS or emulated is None else emulated


def not_run(engine: EngineSpec, chain: str | None) -> Rerun:
    """That an artefact was not run as the board does, and what would change that."""
    if chain is None:
        return Rerun()
    if chain not in TOOLCHAINS:
        remedy = "no environment holds it"
    else:
        found = state(chain)
        remedy = found.command or found.detail
    if chain == _ARM64:
        return Rerun(note=f"{engine.name} was not run on arm64, which the board is: {remedy}")
    return Rerun(note=f"not run in {engine.name} {engine.version}, which the board has: {remedy}")


def rerun(
    product: Product,
    engine: EngineSpec,
    *,
    chain: str,
    inputs: Arrays,
    expected: Arrays,
    tolerance: float,
    folder: Path,
) -> Rerun:
    """Run an artefact as the board does.

    Args:
        chain: the tool chain that does, from `environment_for`.
        inputs: golden samples by input name, axis 0 counting them.
        expected: what the artefact answers here.
        tolerance: largest absolute difference between right implementations.
        folder: for temporary files.
    """
    file = _opened(product, inputs, expected)
    if file is None:
        return Rerun()
    emulated = toolchain(chain).machine is not None
    try:
        ran = run(
            chain,
            file.driver,
            file.path,
            file.feeds,
            [*file.outputs.values()],
            folder=folder,
            most_s=_EMULATED_S if emulated else None,
            limits=_EMULATED_LIMITS if emulated else Limits(),
        )
    except BuildError as e:
        if emulated and isinstance(e, LimitBroken):
            return Rerun(
                note=f"{engine.name} was not run on arm64, which the board is: {e.message}"
            )
        where = "on arm64, emulated" if emulated else engine.version
        return Rerun(problem=f"in {engine.name} {where}: {e.message}")
    version = f"{ran.version}, arm64 emulated" if emulated else ran.version
    note = _note(engine, ran.version, ran.count, file.count) if emulated else ""
    for name, tensor in file.outputs.items():
        wanted = expected[name][: ran.count]
        raw = ran.tensors[tensor]
        answers = np.stack([file.shown(name, raw[i]) for i in range(ran.count)])
        errors = np.abs(answers.reshape(wanted.shape).astype(np.float64) - wanted)
        error = float(errors.max(initial=0.0))
        if not error <= tolerance:
            sample = int(errors.reshape(ran.count, -1).max(axis=1, initial=0.0).argmax())
            where = _first_difference(chain, file, sample=sample, folder=folder)
            return Rerun(
                version=version,
                problem=f"{engine.name} {version} answers {name!r} with a difference of"
                f" {error:.2g}, more than {tolerance:.2g}: {where}",
                note=note,
            )
    return Rerun(version=version, note=note)


def alike(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Whether two right implementations of one operator may give these answers.

    Integers may be a step or two apart; floats a thousandth of the largest value.
    """
    if ours.dtype.kind == "b":
        return bool(np.array_equal(ours, theirs))
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
    if ours.dtype.kind in "iu":
        return bool(error <= _STEPS)
    finite = np.abs(ours[np.isfinite(ours)], dtype=np.float64)
    return bool(error <= _SAME * float(finite.max(initial=0.0)))


def _opened(product: Product, inputs: Arrays, expected: Arrays) -> Opened | None:
    """What of a product runs here; None where nothing of it is of a format with other versions."""
    path = product.stand_in or product.path
    if path.suffix == ".onnx":
        return onnx_file.opened(path, inputs, [*expected])
    if path.suffix == ".tflite":
        return tflite_file.opened(path, inputs, [*expected], options=product.options)
    return None


def _first_difference(chain: str, file: Opened, *, sample: int, folder: Path) -> str:
    """The first operator, in running order, whose answers differ though those before it agree."""
    shown = (
        onnx_file.exposed(file.path, folder)
        if file.driver == onnx_file.DRIVER
        else tflite_file.exposed(file.path)
    )
    feeds = {tensor: array[sample : sample + 1] for tensor, array in file.feeds.items()}
    tensors = [tensor for tensor, _ in shown.makers]
    try:
        theirs, ours = (
            run(where, file.driver, shown.path, feeds, tensors, folder=folder, inner=True).tensors
            for where in (chain, None)
        )
    except (BuildError, ValueError) as e:
        told = e.message if isinstance(e, BuildError) else str(e)
        return f"which operator differs is not known: {told}"
    finally:
        if shown.path != file.path:
            shown.path.unlink()
    for tensor, operator in shown.makers:
        if tensor in ours and tensor in theirs and not alike(ours[tensor], theirs[tensor]):
            return f"the first operator that differs is {operator}"
    return "no single operator differs: it is the sum of small differences"


def _note(engine: EngineSpec, version: str, count: int, total: int) -> str:
    """What an emulated run was, in words."""
    samples = f"{total} golden samples" if count == total else f"{count} of {total} golden samples"
    other = "" if _is_version(version, engine) else f", the board has {engine.version}"
    return (
        f"{engine.name} {version} for arm64 ran {samples} under emulation{other}:"
        " that shows its answers, not its speed"
    )


def _is_emulated(engine: EngineSpec, profile: DeviceProfile) -> bool:
    return engine.accelerator == "cpu" and emulation.is_needed_for(profile.architecture)


def _is_version(version: str, engine: EngineSpec) -> bool:
    """Whether a version is one that the engine's, which may be a prefix, stands for."""
    return f"{version}.".startswith(f"{engine.version}.")


def _version_here(name: str) -> str:
    try:
        return ENGINES.get(name).version()
    except EngineNotInstalled:
        return ""
