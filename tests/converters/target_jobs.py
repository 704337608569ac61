"""Jobs for targets, with a cache of their own below one folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgekit.manifest import TensorSpec
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters.calibrate import Calibration
from edgekit_converters.targets import Job


def job_of(
    board: DeviceProfile,
    engine: EngineSpec,
    folder: Path,
    *,
    inputs: tuple[TensorSpec, ...] = (),
    outputs: tuple[TensorSpec, ...] = (),
    calibration: Calibration | None = None,
) -> Job:
    """A job whose shared folders lie below `folder` and are filled once for equal facts."""
    folder.mkdir(parents=True, exist_ok=True)

    def shared(kind: str, facts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        raw = msgspec.json.encode(facts, order="deterministic")
        place = folder / f"{kind}-{hashlib.sha256(raw).hexdigest()[:16]}"
        if not place.is_dir():
            place.mkdir()
            make(place)
        return place

    return Job(
        engine=engine,
        profile=board,
        inputs=inputs,
        outputs=outputs,
        calibration=calibration,
        folder=folder,
        shared=shared,
    )
