"""Rules: what becomes of a record, as pure functions.

Each takes a record and gives the next one; a move that `STEPS` does not allow is the caller's
error. Nothing here touches the disk, the network or a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from edgekit.manifest import Manifest
from edgekit.messages import ModelState, Wanted
from edgekit_runtime.config import UpdateSection
from edgekit_runtime.update.reasons import Reason, UpdateFailed
from edgekit_runtime.update.record import (
    COUNTED,
    REPLACEABLE,
    STEPS,
    Installed,
    Record,
    SlotName,
    State,
    Update,
)

# How often one state is begun again after the daemon ended in it, before it counts as the cause.
MAX_ATTEMPTS = 3
MAX_DOWNLOADS = 2

# A slot that went bad on the disk says nothing against the bundle: it is fetched again.
RETRIED = frozenset({Reason.SLOT_DAMAGED})

_ONE_TRIAL = frozenset({(State.PROBING, State.CANARY), (State.CANARY, State.PROBING)})


def begin(record: Record, *, serial: int, wanted: Wanted) -> Record | None:
    """The record of a new update towards `wanted`, or `None` where there is nothing to begin.

    A version that has just been activated is judged first. What failed is not tried again until
    the desired state has another serial.
    """
    update = record.update
    if record.state is State.ACTIVE:
        return None
    serves = record.serving is not None and record.serving.digest == wanted.digest
    if update is not None and update.wanted.digest == wanted.digest:
        if record.state in REPLACEABLE:
            return None
        if serves and record.state is State.CONFIRMED:
            # What a newer wish asks for was there: whoever goes back from it later means that, too.
            return _with(record, serial=serial) if serial > update.serial else None
        if serial <= update.serial:
            # One that failed with nothing to go back to serves on, and is none the better for it.
            return None if serves else _retried(record)
    state = State.CONFIRMED if serves else State.FETCHING
    return msgspec.structs.replace(record, update=Update(serial=serial, wanted=wanted, state=state))


def move(record: Record, state: State) -> Record:
    """The record one state on; a move that `STEPS` does not allow is an error of the caller."""
    return _moved(record, state)


def fetched(record: Record, *, keys: tuple[str, ...]) -> Record:
    """The file is here, and the repository said whose key must have signed it."""
    return _with(_moved(record, State.VERIFYING), keys=keys)


def failed(record: Record, reason: Reason, detail: str) -> Record:
    """The update ends; what serves goes on serving, and what was staged is given up."""
    slot = _update(record).slot
    if slot is not None and slot not in (record.active, record.previous):
        record = cleared(record, slot)
    return _moved(record, State.FAILED, reason=reason, detail=detail)


def again(record: Record) -> Record:
    """Fetch from the first byte once more: the file on disk was not the one announced."""
    record = _moved(record, State.FETCHING)
    return _with(record, downloads=_update(record).downloads + 1)


def cleared(record: Record, slot: SlotName) -> Record:
    """The record before `slot` is emptied: nothing relies on it any more."""
    if slot == record.active:
        raise ValueError(f"slot {slot} serves; it cannot be emptied")
    slots = {name: held for name, held in record.slots.items() if name != slot}
    previous = None if record.previous == slot else record.previous
    return msgspec.structs.replace(record, slots=slots, previous=previous)


def staged(record: Record) -> Record:
    """The free slot holds the wanted bundle, whole."""
    update, slot = _update(record), record.free
    wanted = update.wanted
    keys = record.slots[slot].keys if holds_wanted(record) else update.keys
    held = Installed(version=wanted.version, digest=wanted.digest, keys=keys)
    record = msgspec.structs.replace(record, slots={**record.slots, slot: held})
    return _with(_moved(record, State.STAGED), slot=slot)


def advanced(record: Record, *, progress: float, spent_s: float) -> Record:
    """The record some way on in the same state."""
    return _with(record, progress=min(1.0, max(0.0, progress)), spent_s=max(0.0, spent_s))


def cancelled(record: Record, detail: str) -> Record | None:
    """The record of an update that somebody wants no more; `None` where it serves already."""
    if record.state not in REPLACEABLE:
        return None
    return failed(record, Reason.CANCELLED, detail)


def judged_worse(
    record: Record, reason: Reason, detail: str, *, figures: Mapping[str, float]
) -> Record:
    """The canary lost: what serves goes on serving, and the staged slot is given up."""
    slot = _update(record).slot
    if slot is not None and slot != record.active:
        record = cleared(record, slot)
    return measured(_moved(record, State.ROLLED_BACK, reason=reason, detail=detail), figures)


def measured(record: Record, figures: Mapping[str, float]) -> Record:
    """The record with what the canary measured; what is no number cannot be read back."""
    finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
    return _with(record, figures=finite)


def activated(record: Record) -> Record:
    """The staged slot serves from now on, the old one stays to go back to."""
    slot = _update(record).slot
    record = msgspec.structs.replace(record, active=slot, previous=record.active)
    return _moved(record, State.ACTIVE)


def rolled_back(record: Record, reason: Reason, detail: str) -> Record:
    """The previous slot serves again, and nothing goes back to the one that is left.

    The latest update ends only if it is the one that brought the version that is left, or if it
    was on its way to the one that serves now.
    """
    if record.previous is None:
        raise ValueError("there is no slot to go back to")
    brought, left = _brought_active(record), record.active
    record = msgspec.structs.replace(record, active=record.previous, previous=None)
    if reason is Reason.SLOT_DAMAGED and left is not None:
        record = cleared(record, left)
    if not brought:
        return _arrived(record) if record.state in REPLACEABLE else record
    return _moved(record, State.ROLLED_BACK, reason=reason, detail=detail)


def lost(record: Record, detail: str) -> Record:
    """The active slot cannot be opened any more, and there is no other."""
    brought = _brought_active(record)
    slots = {name: held for name, held in record.slots.items() if name != record.active}
    record = msgspec.structs.replace(record, slots=slots, active=None)
    return failed(record, Reason.SLOT_DAMAGED, detail) if brought else record


def at_start(record: Record, *, is_clean: bool = False) -> Record:
    """What start-up makes of the last record: where the daemon goes on.

    A start after an end in good order (`is_clean`) says nothing against a bundle, and is not one of
    the three.

    | last state | start-up |
    |---|---|
    | idle, confirmed, rolled_back, failed | serves the active slot |
    | fetching | serves the active slot, goes on with the download |
    | verifying | serves the active slot, checks the file again; after three starts it failed |
    | staged | serves the active slot, probes |
    | probing | serves the active slot, probes again; after three starts it failed |
    | canary | serves the active slot, probes and compares anew; after three starts it failed |
    | active | serves the new slot; after three starts without confirmation it is rolled back |
    """
    update = record.update
    if update is None or update.state not in COUNTED:
        return record
    if is_clean:
        return _moved(record, State.PROBING) if update.state is State.CANARY else record
    if update.attempts >= MAX_ATTEMPTS:
        detail = f"the daemon ended {update.attempts} times in state {update.state.value}"
        reason = COUNTED[update.state]
        if update.state is not State.ACTIVE:
            return failed(record, reason, detail)
        return record if record.previous is None else rolled_back(record, reason, detail)
    if update.state is State.CANARY:
        record = _moved(record, State.PROBING)
    return _with(record, attempts=update.attempts + 1)


def settled(record: Record) -> Record:
    """What is to be gone on from where this record is lost: the same with nothing on trial.

    What is confirmed serves. What was on trial stays in its slot, and is tried anew when it is
    asked for; one with nothing before it serves on, and its trial begins anew. An update that has
    ended stays ended, so that what was given up is not taken up again.
    """
    update = record.update
    if update is None or update.state not in REPLACEABLE | {State.ACTIVE}:
        return record
    if update.state is not State.ACTIVE:
        return msgspec.structs.replace(record, update=None)
    if record.previous is None:
        return _with(record, attempts=1, spent_s=0.0, progress=0.0)
    return msgspec.structs.replace(record, active=record.previous, previous=None, update=None)


def judge(
    *, engine_failures: int, served_s: float, allowed_failures: int, confirm_after_s: float
) -> State | None:
    """What becomes of an active version: confirmed, rolled back, or `None` for not yet."""
    if engine_failures > allowed_failures:
        return State.ROLLED_BACK
    return State.CONFIRMED if served_s >= confirm_after_s else None


def check(record: Record, manifest: Manifest, digest: str, *, model: str, profile: str) -> None:
    """Raise `UpdateFailed` where a bundle is whole, but not what was announced to this device."""
    wanted = _update(record).wanted
    if digest != wanted.digest:
        raise UpdateFailed(Reason.WRONG_DIGEST, f"digest is {digest}, wanted {wanted.digest}")
    if (manifest.name, manifest.version) != (model, wanted.version):
        found = f"{manifest.name} {manifest.version}"
        raise UpdateFailed(Reason.WRONG_MODEL, f"holds {found}, wanted {model} {wanted.version}")
    if manifest.profile.name != profile:
        raise UpdateFailed(
            Reason.WRONG_PROFILE, f"made for {manifest.profile.name}, this device is a {profile}"
        )


def holds_wanted(record: Record) -> bool:
    """Whether the free slot holds what is wanted, so that nothing need be fetched."""
    held = record.slots.get(record.free)
    return held is not None and held.digest == _update(record).wanted.digest


def limit(state: State, limits: UpdateSection) -> tuple[float, Reason]:
    """How long a state may take, in seconds, and the reason code when that is over."""
    step = STEPS[state]
    if step.limit is None or step.timeout is None:
        raise ValueError(f"state {state.value} has no time limit")
    return float(getattr(limits, step.limit)), step.timeout


def model_state(
    record: Record,
    *,
    serves: bool,
    progress: float | None,
    trouble: tuple[Reason, str] | None = None,
) -> ModelState:
    """What the fleet is told.

    Args:
        record: of the model.
        serves: whether the active slot could be opened.
        progress: share of the present state that is done.
        trouble: why the active slot does not serve; told where the update has no reason of its own.
    """
    update = record.update
    held = record.serving if serves else None
    reason = update.reason if update else None
    detail = update.detail if update else None
    if trouble is not None and not serves and reason is None:
        reason, detail = trouble
    return ModelState(
        version=held.version if held else None,
        digest=held.digest if held else None,
        state=record.state.value,
        target=update.wanted.version if update else None,
        target_digest=update.wanted.digest if update else None,
        reason=reason.value if reason else None,
        detail=detail,
        progress=progress if record.state in (State.FETCHING, State.CANARY) else None,
        figures=update.figures if update else {},
    )


def _retried(record: Record) -> Record | None:
    """The same update once more, where it failed for a reason that is not the bundle's."""
    update = _update(record)
    if update.reason not in RETRIED or update.downloads >= MAX_DOWNLOADS:
        return None
    fresh = Update(
        serial=update.serial,
        wanted=update.wanted,
        state=State.FETCHING,
        downloads=update.downloads + 1,
    )
    return msgspec.structs.replace(record, update=fresh)


def _arrived(record: Record) -> Record:
    """The record, whose update has nothing left to do where what it wants serves already."""
    update = _update(record)
    if record.serving is None or record.serving.digest != update.wanted.digest:
        return record
    fresh = Update(serial=update.serial, wanted=update.wanted, state=State.CONFIRMED)
    return msgspec.structs.replace(record, update=fresh)


def _brought_active(record: Record) -> bool:
    """Whether the latest update brought what serves."""
    settled = record.state in (State.ACTIVE, State.CONFIRMED)
    return settled and _update(record).wanted.digest == (record.serving and record.serving.digest)


def _moved(
    record: Record, state: State, *, reason: Reason | None = None, detail: str | None = None
) -> Record:
    if state not in STEPS[record.state].then:
        raise ValueError(f"an update cannot go from {record.state.value} to {state.value}")
    text = None if detail is None else detail[:2000]
    # One that ended while it ran beside the old version is opened again: both counts go on.
    keeps = (record.state, state) in _ONE_TRIAL
    update = _update(record)
    return _with(
        record,
        state=state,
        attempts=update.attempts if keeps else 1,
        spent_s=update.spent_s if keeps else 0.0,
        progress=0.0,
        reason=reason,
        detail=text,
    )


def _with(record: Record, **changes: object) -> Record:
    update = msgspec.structs.replace(_update(record), **changes)
    return msgspec.structs.replace(record, update=update)


def _update(record: Record) -> Update:
    if record.update is None:
        raise ValueError("there is no update")
    return record.update
