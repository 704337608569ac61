"""Installed: the bundles in the slots of a state folder, each variant with what it is tied to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgekit.bundle import Bundle
from edgekit.errors import BundleError, EngineError, UsageError
from edgekit.manifest import Manifest, Variant
from edgekit.structs import Strict
from edgekit_runtime import compiled_store
from edgekit_runtime.compiled_store import Entry
from edgekit_runtime.doctor import ties
from edgekit_runtime.doctor.ties import Tie
from edgekit_runtime.engines import ENGINES, hardware
from edgekit_runtime.engines.compiling import Compiles
from edgekit_runtime.engines.onnx_compile import holds_context
from edgekit_runtime.slots import SLOTS, Slots


class Held(Strict, frozen=True, kw_only=True):
    """One slot; `manifest` is None where it cannot be opened, and `problem` says why."""

    model: str
    slot: str
    active: bool
    folder: str
    manifest: Manifest | None = None
    problem: str = ""


def held(state: Path) -> tuple[Held, ...]:
    """What the slots of a state folder hold; nothing is made where there is none yet.

    Raises:
        StorageError: a record cannot be read.
    """
    if not (state / "models").is_dir():
        return ()
    slots = Slots(state)
    return tuple(
        _look(model, slot, slots.folder(model, slot), active=slot == record.active)
        for model in slots.names()
        for record in (slots.read(model),)
        for slot in SLOTS
        if slot in record.slots
    )


def tied(found: Held, state: Path, *, drivers: Mapping[str, str]) -> tuple[Tie, ...]:
    """What each variant of a slot is tied to.

    Args:
        drivers: versions by name, as `facts` reads them.
    """
    if found.manifest is None:
        return ()
    compiled = {
        entry.holds_for.artifact_sha256: entry
        for entry in compiled_store.entries(state / "compiled").values()
    }
    made = [
        _tie(found, found.manifest, variant, compiled=compiled, drivers=drivers)
        for variant in found.manifest.variants
    ]
    going_on = next((t.variant for t in made if t.on_change == "goes on" and not t.problem), None)
    return tuple(
        msgspec.structs.replace(tie, stays=going_on if tie.on_change != "goes on" else None)
        for tie in made
    )


def _look(model: str, slot: str, folder: Path, *, active: bool) -> Held:
    try:
        with Bundle.open(folder) as bundle:
            manifest, problem = bundle.manifest, ""
    except BundleError as e:
        manifest, problem = None, e.message
    return Held(
        model=model,
        slot=slot,
        active=active,
        folder=str(folder),
        manifest=manifest,
        problem=problem,
    )


def _tie(
    found: Held,
    manifest: Manifest,
    variant: Variant,
    *,
    compiled: Mapping[str, Entry],
    drivers: Mapping[str, str],
) -> Tie:
    artifact = Path(found.folder) / variant.artifact
    entry = compiled.get(manifest.entries[variant.artifact].sha256)
    now = _compiles_for(variant, artifact)
    change, bound_to = ties.change_of(
        variant,
        manifest,
        holds_context=artifact.suffix == ".onnx" and holds_context(artifact),
        compiles=now is not None or entry is not None,
    )
    changed: tuple[str, ...] = ()
    if entry is not None:
        here = hardware.identity() if now is None else now
        changed = ties.changes(entry, here, engine_version=_version(variant.engine))
    return Tie(
        model=manifest.name,
        version=manifest.version,
        slot=found.slot,
        active=found.active,
        variant=variant.name,
        engine=variant.engine,
        accelerator=variant.accelerator,
        bound_to=bound_to,
        on_change=change,
        takes_s=entry.took_s if entry else None,
        changed=changed,
        problem=ties.problem_of(variant, manifest, drivers=drivers),
    )


def _compiles_for(variant: Variant, artifact: Path) -> Mapping[str, str] | None:
    """What the variant's engine would compile it for, here and now; None where it compiles not."""
    try:
        engine = ENGINES.get(variant.engine)
        if not isinstance(engine, Compiles):
            return None
        found = engine.compilation(artifact, options=variant.options)
    except (EngineError, UsageError):
        # Not here, or of another version: the checks of engines say so.
        return None
    return None if found is None else found.holds_for


def _version(engine: str) -> str:
    try:
        return ENGINES.get(engine).version()
    except (EngineError, UsageError):
        return "nothing"
