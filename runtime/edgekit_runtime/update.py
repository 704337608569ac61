"""Update: the life of a new bundle on a device, as values and rules.

    idle -> fetching -> verifying -> staged -> probing -> active -> confirmed
                                                                 -> rolled_back
            any state before active may end in failed

Promise: whatever happens between two records, the device can go on from the last one, and the
active slot is never the one that is written to. Nothing here touches the disk, the network or a
clock: `updater` writes each record before it acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Literal, NamedTuple

import msgspec

from edgekit.errors import FleetError
from edgekit.manifest import Manifest, ModelVersion
from edgekit.messages import Digest, ModelState, Wanted
from edgekit.structs import Strict
from edgekit_runtime.config import UpdateSection

SlotName = Literal["a", "b"]

# How often one state is begun again after the daemon ended in it, before it counts as the cause.
MAX_ATTEMPTS = 3
MAX_DOWNLOADS = 2


class State(Enum):
    """Where an update is; each is on disk before the device acts on it."""

    IDLE = "idle"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    STAGED = "staged"
    PROBING = "probing"
    ACTIVE = "active"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


class Reason(Enum):
    """Why an update failed or was rolled back; `MEANING` says it in a line."""

    BAD_URL = "bad_url"
    FETCH_REFUSED = "fetch_refused"
    FETCH_TIMEOUT = "fetch_timeout"
    WRONG_SIZE = "wrong_size"
    WRONG_SHA256 = "wrong_sha256"
    DISK_FULL = "disk_full"
    VERIFY_TIMEOUT = "verify_timeout"
    DAMAGED = "damaged"
    WRONG_DIGEST = "wrong_digest"
    UNTRUSTED = "untrusted"
    WRONG_PROFILE = "wrong_profile"
    WRONG_MODEL = "wrong_model"
    NO_ENGINE = "no_engine"
    ENGINE_ERROR = "engine_error"
    GOLDEN_MISMATCH = "golden_mismatch"
    PROBE_TIMEOUT = "probe_timeout"
    PROBE_CRASHED = "probe_crashed"
    ENGINE_FAILURES = "engine_failures"
    CRASH_LOOP = "crash_loop"
    SLOT_DAMAGED = "slot_damaged"
    ASKED = "asked"
    INTERNAL = "internal"


MEANING: Mapping[Reason, str] = {
    Reason.BAD_URL: "the bundle's address is not http or https",
    Reason.FETCH_REFUSED: "the repository answered with an error or a redirect",
    Reason.FETCH_TIMEOUT: "the download did not end within its time limit",
    Reason.WRONG_SIZE: "the repository offers another number of bytes than was announced",
    Reason.WRONG_SHA256: "the downloaded file is not the one that was announced",
    Reason.DISK_FULL: "the download or the unpacked bundle does not fit on the disk",
    Reason.VERIFY_TIMEOUT: "checking and unpacking did not end within the time limit",
    Reason.DAMAGED: "the file breaks a rule of the bundle format",
    Reason.WRONG_DIGEST: "the bundle has another digest than was announced",
    Reason.UNTRUSTED: "no key that this device trusts signed the bundle",
    Reason.WRONG_PROFILE: "the bundle was built for another device profile",
    Reason.WRONG_MODEL: "the bundle holds another model or version than was announced",
    Reason.NO_ENGINE: "no variant of the bundle has its engine on this device",
    Reason.ENGINE_ERROR: "the engine could not open or run the model",
    Reason.GOLDEN_MISMATCH: "the device does not reproduce the golden outputs",
    Reason.PROBE_TIMEOUT: "opening and probing did not end within the time limit",
    Reason.PROBE_CRASHED: "the daemon ended several times while it probed the bundle",
    Reason.ENGINE_FAILURES: "the engine failed too often before the version was confirmed",
    Reason.CRASH_LOOP: "the daemon ended several times before the version was confirmed",
    Reason.SLOT_DAMAGED: "the installed files can no longer be opened",
    Reason.ASKED: "somebody asked this device to go back",
    Reason.INTERNAL: "an error in edgekit itself; the daemon's log has the traceback",
}

# A slot that went bad on the disk says nothing against the bundle: it is fetched again.
RETRIED = frozenset({Reason.SLOT_DAMAGED})


class Step(NamedTuple):
    """What may follow a state, and how long it may take.

    Attributes:
        then: states that may follow.
        limit: field of `[update]` with the time limit, in seconds.
        timeout: reason code when the limit is over.
    """

    then: frozenset[State]
    limit: str | None = None
    timeout: Reason | None = None


_ENDS = frozenset({State.FETCHING, State.CONFIRMED})

STEPS: Mapping[State, Step] = {
    State.IDLE: Step(_ENDS),
    State.FETCHING: Step(
        frozenset({State.VERIFYING, State.FAILED}), "fetch_limit_s", Reason.FETCH_TIMEOUT
    ),
    State.VERIFYING: Step(
        frozenset({State.STAGED, State.FETCHING, State.FAILED}),
        "verify_limit_s",
        Reason.VERIFY_TIMEOUT,
    ),
    State.STAGED: Step(frozenset({State.PROBING, State.FAILED})),
    State.PROBING: Step(
        frozenset({State.ACTIVE, State.FAILED}), "probe_limit_s", Reason.PROBE_TIMEOUT
    ),
    State.ACTIVE: Step(
        frozenset({State.CONFIRMED, State.ROLLED_BACK, State.FAILED}), "confirm_after_s"
    ),
    State.CONFIRMED: Step(_ENDS | {State.ROLLED_BACK, State.FAILED}),
    State.ROLLED_BACK: Step(_ENDS),
    State.FAILED: Step(_ENDS),
}

REPLACEABLE = frozenset({State.FETCHING, State.VERIFYING, State.STAGED, State.PROBING})
UNDER_WAY = REPLACEABLE | {State.ACTIVE}


class UpdateFailed(FleetError):
    """An update cannot go on.

    Args:
        reason: the code that the fleet sees.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Installed(Strict, frozen=True, kw_only=True):
    """What a slot holds, whole and once verified."""

    version: ModelVersion
    digest: Digest


class Update(Strict, frozen=True, kw_only=True):
    """One attempt to serve another bundle.

    Attributes:
        serial: of the desired state that asked for it.
        attempts: how often the present state was begun.
        downloads: how often the download was begun from its first byte.
        slot: where the bundle was staged.
        reason: set in `failed` and `rolled_back`; `detail` says the same for people.
    """

    serial: int
    wanted: Wanted
    state: State
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 1
    downloads: Annotated[int, msgspec.Meta(ge=1)] = 1
    slot: SlotName | None = None
    reason: Reason | None = None
    detail: str | None = None


class Record(Strict, frozen=True, kw_only=True):
    """`state.json`: everything the device knows about one model.

    Attributes:
        slots: what each slot holds; a slot that is being written is not there.
        active: the slot that serves.
        previous: the slot to go back to.
        update: the latest one.
    """

    format: Literal[1] = 1
    slots: dict[SlotName, Installed] = {}
    active: SlotName | None = None
    previous: SlotName | None = None
    update: Update | None = None

    def __post_init__(self) -> None:
        for slot in (self.active, self.previous):
            if slot is not None and slot not in self.slots:
                raise ValueError(f"slot {slot} is named, but holds nothing")
        if self.previous is not None and self.previous == self.active:
            raise ValueError(f"slot {self.active} cannot be its own predecessor")

    @property
    def state(self) -> State:
        return State.IDLE if self.update is None else self.update.state

    @property
    def free(self) -> SlotName:
        """The slot that the next bundle goes to."""
        return "b" if self.active == "a" else "a"

    @property
    def serving(self) -> Installed | None:
        """What the active slot holds."""
        return None if self.active is None else self.slots[self.active]


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
        if record.state in REPLACEABLE or (serves and record.state is State.CONFIRMED):
            return None
        if not serves and serial <= update.serial:
            return _retried(record)
    state = State.CONFIRMED if serves else State.FETCHING
    return msgspec.structs.replace(record, update=Update(serial=serial, wanted=wanted, state=state))


def move(record: Record, state: State) -> Record:
    """The record one state on; a move that `STEPS` does not allow is an error of the caller."""
    return _moved(record, state)


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
    wanted, slot = _update(record).wanted, record.free
    held = Installed(version=wanted.version, digest=wanted.digest)
    record = msgspec.structs.replace(record, slots={**record.slots, slot: held})
    return _with(_moved(record, State.STAGED), slot=slot)


def activated(record: Record) -> Record:
    """The staged slot serves from now on, the old one stays to go back to."""
    slot = _update(record).slot
    record = msgspec.structs.replace(record, active=slot, previous=record.active)
    return _moved(record, State.ACTIVE)


def rolled_back(record: Record, reason: Reason, detail: str) -> Record:
    """The previous slot serves again, and nothing goes back to the one that is left.

    The latest update ends only if it is the one that brought the version that is left.
    """
    if record.previous is None:
        raise ValueError("there is no slot to go back to")
    brought, left = _brought_active(record), record.active
    record = msgspec.structs.replace(record, active=record.previous, previous=None)
    if reason is Reason.SLOT_DAMAGED and left is not None:
        record = cleared(record, left)
    if not brought:
        return record
    return _moved(record, State.ROLLED_BACK, reason=reason, detail=detail)


def lost(record: Record, detail: str) -> Record:
    """The active slot cannot be opened any more, and there is no other."""
    brought = _brought_active(record)
    slots = {name: held for name, held in record.slots.items() if name != record.active}
    record = msgspec.structs.replace(record, slots=slots, active=None)
    return failed(record, Reason.SLOT_DAMAGED, detail) if brought else record


def at_start(record: Record) -> Record:
    """What start-up makes of the last record: where the daemon goes on.

    | last state | start-up |
    |---|---|
    | idle, confirmed, rolled_back, failed | serves the active slot |
    | fetching | serves the active slot, goes on with the download |
    | verifying | serves the active slot, checks the file again |
    | staged | serves the active slot, probes |
    | probing | serves the active slot, probes again; after three starts it failed |
    | active | serves the new slot; after three starts without confirmation it is rolled back |
    """
    update = record.update
    if update is None or update.state not in (State.PROBING, State.ACTIVE):
        return record
    if update.attempts < MAX_ATTEMPTS:
        return _with(record, attempts=update.attempts + 1)
    detail = f"the daemon ended {update.attempts} times in state {update.state.value}"
    if update.state is State.PROBING:
        return failed(record, Reason.PROBE_CRASHED, detail)
    if record.previous is None:
        return record
    return rolled_back(record, Reason.CRASH_LOOP, detail)


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


def model_state(record: Record, *, serves: bool, progress: float | None) -> ModelState:
    """What the fleet is told; `serves` says whether the active slot could be opened."""
    update = record.update
    held = record.serving if serves else None
    return ModelState(
        version=held.version if held else None,
        digest=held.digest if held else None,
        state=record.state.value,
        target=update.wanted.version if update else None,
        target_digest=update.wanted.digest if update else None,
        reason=update.reason.value if update and update.reason else None,
        detail=update.detail if update else None,
        progress=progress if record.state is State.FETCHING else None,
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
    return _with(record, state=state, attempts=1, reason=reason, detail=text)


def _with(record: Record, **changes: object) -> Record:
    update = msgspec.structs.replace(_update(record), **changes)
    return msgspec.structs.replace(record, update=update)


def _update(record: Record) -> Update:
    if record.update is None:
        raise ValueError("there is no update")
    return record.update
