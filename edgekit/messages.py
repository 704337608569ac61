"""Every MQTT payload, versioned and typed. docs/mqtt.md gives each to the field.

Devices and coordinators of neighbouring versions must understand each other, so a reader ignores
fields it does not know; a field that it does know must be right.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edgekit.errors import MessageError
from edgekit.manifest import ModelName, ModelVersion, Sha256
from edgekit.topics import ID

MAX_PAYLOAD_BYTES = 256 << 10
MAX_TENSOR_FRAME_BYTES = 64 << 20

# Upper edges of the latency histogram in microseconds, four to each doubling, 16 us to 67 s: the
# same edges everywhere, so that histograms of devices and of hours add up.
LATENCY_EDGES_US: tuple[int, ...] = tuple(round(16 * 2 ** (step / 4)) for step in range(89))

Id = Annotated[str, msgspec.Meta(pattern=ID)]
Boot = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
Seq = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
UpdateState = Literal[
    "idle", "fetching", "verifying", "staged", "probing", "canary", "active", "confirmed",
    "rolled_back", "failed",
]  # fmt: skip
# What goes first where there is no room, the least important first: older before newer.
Importance = Literal["telemetry", "event", "error"]
IMPORTANCES: tuple[Importance, ...] = ("telemetry", "event", "error")
# What telemetry tells only where it changed.
Part = Literal["about", "slots", "drift"]

M = TypeVar("M", bound="Message")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every payload. `v` is the version of its form, `at` milliseconds since 1970 UTC."""

    v: Literal[1] = 1


class Status(Message, frozen=True, kw_only=True):
    """`status`, retained; the last will says `online: false`."""

    online: bool
    boot: Boot
    profile: str = ""
    version: str = ""


class Counted(Message, frozen=True, kw_only=True):
    """What the outbox carries: known by device, boot and `seq`.

    Attributes:
        seq: counts up from 1 within a boot, over telemetry and events together.
        floor: lowest `seq` of this boot still in the outbox; below it nothing will come any more.
        at: the device's wall clock, milliseconds since 1970 UTC; it may step.
        up: milliseconds on the device's monotonic clock when the message was made; 0 for unknown.
        sent: the same clock at this sending, so that `sent` - `up` is the message's age whatever
            the wall clock did; 0 for a message of an earlier boot, whose clock is over.
    """

    boot: Boot
    seq: Seq
    floor: Seq
    at: Count
    up: Count = 0
    sent: Count = 0


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one variant of one model did since the last telemetry.

    Attributes:
        rejected: refused before they waited.
        cancelled: the client left before its answer.
        latency_us: counts by bucket of `LATENCY_EDGES_US`, one more for what lies above; sparse:
            bucket index to count.
        engine_us: time within the engine, microseconds in all.
    """

    model: ModelName
    version: ModelVersion
    variant: str
    requests: Count
    errors: Count
    rejected: Count = 0
    cancelled: Count = 0
    engine_us: Count = 0
    latency_us: dict[Annotated[int, msgspec.Meta(ge=0, le=89)], Count] = {}


class DriftSketch(msgspec.Struct, frozen=True, kw_only=True):
    """What a window saw, in counts that add up over windows and devices; see docs/drift.md.

    Attributes:
        reference: sha256 of the bundle's `drift.json`, whose bins these are.
        rows: samples that were looked at.
        counts: base64 of a zlib stream of uint32, little-endian, [features][9].
    """

    reference: Sha256
    rows: Count
    counts: Annotated[str, msgspec.Meta(max_length=8192)]


class DriftFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether a model still sees, and answers, what it was evaluated on.

    Attributes:
        rows: samples that were looked at since the model was loaded.
        windows: windows that ended since then; `alarms` of them differed too much.
        drifts: whether the last one did.
        p: how often chance alone differs as much as the last window did; `None` before the first.
        distance: by how much the shares of `feature` differ, 0 to 1.
        feature: the one that differs most.
        sketch: of a window that ended since the last telemetry.
    """

    model: ModelName
    version: ModelVersion
    rows: Count
    windows: Count = 0
    alarms: Count = 0
    drifts: bool = False
    p: float | None = None
    distance: float | None = None
    feature: Text = ""
    sketch: DriftSketch | None = None


class Resources(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the daemon and the board use now; `None` where the board does not tell.

    Attributes:
        temperature_c: of the hottest zone.
        clock_mhz: of the fastest core.
        power_w: that the whole board takes, where one rail stands for all of it.
        throttled: what slows the board down now, in words.
    """

    cpu_s: float
    rss_bytes: Count
    memory_free_bytes: Count | None = None
    disk_free_bytes: Count | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    power_w: float | None = None
    throttled: tuple[Text, ...] = ()


class OutboxFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What waits in the outbox, and what it gave up since the daemon started.

    Attributes:
        waiting: messages that are not acknowledged, this one not counted.
        dropped: messages given up for room or age, by importance.
        dropped_bytes: of their payloads.
    """

    waiting: Count = 0
    dropped: dict[Importance, Count] = {}
    dropped_bytes: Count = 0


class About(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the device runs on; `engines` are the libraries that are installed, with versions."""

    edgekit: Text
    python: Text
    machine: Text
    system: Text
    engines: dict[str, Text] = {}


class Telemetry(Counted, frozen=True, kw_only=True):
    """`telemetry`.

    `about`, `slots` and `drift` are parts: told when they change, and again every hour. `told`
    says for each which message of this boot carried it as it is now. Where that message never
    came, the part is unknown; it is never taken for an older one.
    """

    period_s: float
    models: tuple[ModelFigures, ...] = ()
    told: dict[Part, Seq] = {}
    about: About | None = None
    slots: dict[ModelName, ModelState] | None = None
    drift: tuple[DriftFigures, ...] = ()
    resources: Resources
    outbox: OutboxFigures = OutboxFigures()


class Event(Counted, frozen=True, kw_only=True):
    """`event`: something happened that an operator may want to know."""

    kind: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,40}\Z")]
    level: Literal["info", "warning", "error"] = "info"
    message: Text = ""
    facts: dict[str, str | int | float | bool | None] = {}


class Ack(Message, frozen=True, kw_only=True):
    """`ack`: everything of `boot` up to and including `seq` is stored for good."""

    boot: Boot
    seq: Seq


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One model that a device shall serve.

    Attributes:
        digest: the bundle's digest (its manifest's sha256).
        url: where to fetch the `.edge` file, absolute or relative to the device's repository; to
            an enrolled device its path among the targets of the fleet's signed repository.
        sha256: of the whole file.
    """

    version: ModelVersion
    digest: Digest
    url: Text
    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(gt=0, le=8 << 30)]


class Desired(Message, frozen=True, kw_only=True):
    """`state/desired`, retained: what the coordinator wants; a lower `serial` is ignored.

    An enrolled device takes it only in a signed envelope (`edgekit.envelope`), and only where
    `device` is its own name: else a broker could hand it another device's wishes.

    Attributes:
        device: `SITE/ID`; empty where nothing is signed.
    """

    serial: Seq
    device: Annotated[str, msgspec.Meta(max_length=127)] = ""
    models: dict[ModelName, Wanted] = {}


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a device is with one model.

    Attributes:
        version: what serves now, if anything does.
        state: of the latest update.
        target: version of the latest update.
        reason: code of why the latest update failed or was rolled back, or why nothing serves.
        detail: the same for people.
        progress: of the present state, 0 to 1, where it can tell.
        figures: what a canary has measured, by name.
    """

    version: ModelVersion | None = None
    digest: Digest | None = None
    state: UpdateState = "idle"
    target: ModelVersion | None = None
    target_digest: Digest | None = None
    reason: str | None = None
    detail: Text | None = None
    progress: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    figures: dict[str, float] = {}


class Reported(Message, frozen=True, kw_only=True):
    """`state/reported`, retained: what the device has; `serial` is the desired one it last took."""

    boot: Boot
    at: Count
    serial: Count
    models: dict[ModelName, ModelState] = {}
    trains: tuple[ModelName, ...] = ()


class RoundOpen(Message, frozen=True, kw_only=True):
    """`rounds/{round}/open`, retained until the round ends (then an empty payload).

    It is said again while answers are missing. An enrolled device takes it only in a signed
    envelope; `parameters_sha256` makes that hold for the weights.

    Attributes:
        site: the only one whose devices are asked.
        answered: participants whose answer has come; the others say theirs again.
        base: digest of the bundle whose `training/` entries a device trains with.
        parameters_sha256: identity of the weights under `rounds/{round}/parameters`.
        participants: devices that are asked.
        closes_at: updates that come later are not counted; milliseconds since 1970 UTC.
    """

    round: Id
    site: Id
    model: ModelName
    base: Digest
    parameters_sha256: Sha256
    participants: tuple[Id, ...]
    answered: tuple[Id, ...] = ()
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=100)]
    closes_at: Count


class ParametersHeader(Message, frozen=True, kw_only=True):
    """Header of the frame under `rounds/{round}/parameters`; its arrays are the weights."""

    round: Id


class UpdateHeader(Message, frozen=True, kw_only=True):
    """Header of a device's update; its arrays are weights after training minus before.

    Attributes:
        samples: how many the device trained on: its weight in the average.
        loss_before: mean loss of the round's parameters on the device's samples.
        loss_after: the same after training.
    """

    round: Id
    device: Id
    parameters_sha256: Sha256
    samples: Annotated[int, msgspec.Meta(gt=0, le=1 << 40)]
    loss_before: float
    loss_after: float
    seconds: float


class Refusal(Message, frozen=True, kw_only=True):
    """A device's answer where it cannot take part in a round; JSON instead of a frame."""

    round: Id
    device: Id
    reason: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,40}\Z")]
    detail: Text = ""


def encode(message: Message) -> bytes:
    """A payload as JSON. Fields come in their order here; nothing signs or hashes a payload."""
    return msgspec.json.encode(message)


def decode(raw: bytes, kind: type[M], *, topic: str) -> M:
    """Read a JSON payload, raising `MessageError` that names topic and field."""
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise MessageError(f"{topic}: {len(raw)} bytes, a payload has at most {MAX_PAYLOAD_BYTES}")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise MessageError(f"{topic}: not a valid {kind.__name__}: {e}") from e


def facts(**values: Any) -> dict[str, str | int | float | bool | None]:
    """Facts of an event: what is not a plain value becomes text."""
    plain = (str, int, float, bool, type(None))
    return {key: v if isinstance(v, plain) else str(v) for key, v in values.items()}
