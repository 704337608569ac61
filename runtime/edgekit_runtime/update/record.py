"""Record: everything a device has on disk about one model, and which state may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Literal, NamedTuple

import msgspec

from edgekit.manifest import ModelVersion
from edgekit.messages import Digest, Wanted
from edgekit.structs import Strict
from edgekit_runtime.update.reasons import Reason

SlotName = Literal["a", "b"]


class State(Enum):
    """Where an update is; each is on disk before the device acts on it."""

    IDLE = "idle"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    STAGED = "staged"
    PROBING = "probing"
    CANARY = "canary"
    ACTIVE = "active"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


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
        frozenset({State.CANARY, State.ACTIVE, State.FAILED}),
        "probe_limit_s",
        Reason.PROBE_TIMEOUT,
    ),
    # Back to probing: a daemon that ended opens the version again. The limit is in `[canary]`.
    State.CANARY: Step(
        frozenset({State.PROBING, State.ACTIVE, State.ROLLED_BACK, State.FAILED}),
        None,
        Reason.CANARY_TIMEOUT,
    ),
    State.ACTIVE: Step(
        frozenset({State.CONFIRMED, State.ROLLED_BACK, State.FAILED}), "confirm_after_s"
    ),
    State.CONFIRMED: Step(_ENDS | {State.ROLLED_BACK, State.FAILED}),
    State.ROLLED_BACK: Step(_ENDS),
    State.FAILED: Step(_ENDS),
}

# What a newer wish, or a word of cancellation, ends; nothing of it serves yet.
REPLACEABLE = frozenset(
    {State.FETCHING, State.VERIFYING, State.STAGED, State.PROBING, State.CANARY}
)
UNDER_WAY = REPLACEABLE | {State.ACTIVE}

# Where a daemon that ends may have ended because of the bundle, and what that is called.
COUNTED: Mapping[State, Reason] = {
    State.VERIFYING: Reason.VERIFY_CRASHED,
    State.PROBING: Reason.PROBE_CRASHED,
    State.CANARY: Reason.CANARY_CRASHED,
    State.ACTIVE: Reason.CRASH_LOOP,
}


class Installed(Strict, frozen=True, kw_only=True):
    """What a slot holds, whole and once verified.

    Attributes:
        keys: who may have signed it (PEM), as the signed repository said when it came.
    """

    version: ModelVersion
    digest: Digest
    keys: tuple[str, ...] = ()


class Update(Strict, frozen=True, kw_only=True):
    """One attempt to serve another bundle.

    Attributes:
        serial: of the desired state that asked for it.
        attempts: how often the present state was begun, starts after a clean end left out.
        downloads: how often the download was begun from its first byte.
        slot: where the bundle was staged.
        keys: who may have signed it (PEM), as the signed repository says; the device's own keys
            count beside them.
        spent_s: how long the present state took before the daemon last ended, as far as that is on
            disk; its time limit counts on from there. In `probing` it is of the canary before.
        progress: share of the present state that was done then.
        reason: set in `failed` and `rolled_back`; `detail` says the same for people.
        figures: what the canary measured, by name.
    """

    serial: int
    wanted: Wanted
    state: State
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 1
    downloads: Annotated[int, msgspec.Meta(ge=1)] = 1
    slot: SlotName | None = None
    keys: tuple[str, ...] = ()
    spent_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    progress: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    reason: Reason | None = None
    detail: str | None = None
    figures: dict[str, float] = {}


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
