"""Lint: what in a device profile cannot be true, or promises what no build can keep."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from onnx import helper

from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters.targets import target_for

PRECISIONS = frozenset(
    {
        "fp32",
        "fp16",
        "int8",
        "int8-qdq-u8s8",
        "int8-qdq-s8s8",
        "int8-dynamic",
        "int4-weights",
    }
)


def lint(profile: DeviceProfile, *, file_stem: str) -> tuple[str, ...]:
    """Problems of a profile, each with its field; empty where there is none.

    Args:
        file_stem: name of its file without suffix, which must be its own name.
    """
    return (*_general(profile, file_stem), *(p for e in profile.engines for p in _engine(e)))


def _general(profile: DeviceProfile, file_stem: str) -> Iterator[str]:
    if profile.name != file_stem:
        yield f"name: is {profile.name!r}, the file is called {file_stem!r}"
    quality = profile.quality
    try:
        dt.date.fromisoformat(quality.checked)
    except ValueError:
        yield f"quality.checked: {quality.checked!r} is no date"
    if quality.evidence != "executed" and not quality.unverified:
        yield f"quality.unverified: evidence is {quality.evidence}, so something was not run: what?"
    if quality.evidence == "executed" and not quality.verified:
        yield "quality.verified: evidence is executed: what was run?"
    for source in quality.sources:
        if not source.startswith("https://"):
            yield f"quality.sources: {source!r} is no https address"


def _engine(engine: EngineSpec) -> Iterator[str]:
    where = f"engines[{engine.name} on {engine.accelerator}]"
    for precision in engine.precisions:
        if precision not in PRECISIONS:
            yield f"{where}.precisions: {precision!r} is unknown"
    target = target_for(engine)
    if target is None:
        yield f"{where}: no target makes artefacts for it"
        return
    if target.style == "tensorrt" and "int8-qdq-u8s8" in engine.precisions:
        yield f"{where}.precisions: TensorRT takes symmetric int8 only, not int8-qdq-u8s8"
    if target.format == "onnx":
        opset = helper.make_opsetid("", engine.max_opset)
        needed = helper.find_min_ir_version_for([opset], ignore_unknown=True)
        if needed > engine.max_onnx_ir:
            yield (
                f"{where}.max_opset: opset {engine.max_opset} needs IR {needed},"
                f" max_onnx_ir is {engine.max_onnx_ir}"
            )
