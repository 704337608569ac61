"""Commands: what an operator may ask of one device, and its answer; docs/remote.md explains both.

A command is for one device, one start of its daemon and one time, and bears a number that only
grows; in a fleet with identities it travels in a signed envelope. Rule: whoever cannot sign can
delay a command, and can neither make, change, repeat nor redirect one.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec

from edgekit import envelope, messages
from edgekit.errors import MessageError, UsageError
from edgekit.manifest import ModelName
from edgekit.messages import MAX_PAYLOAD_BYTES, Boot, Count, Id, Message, Seq, Text
from edgekit.signing import PublicKey, SigningKey
from edgekit.structs import Strict

Kind = Literal[
    "logs", "diagnostics", "benchmark", "reload", "rollback", "cancel", "set_interval"
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
# These change nothing, so a device carries them out even where it can write nothing down.
READING: frozenset[Kind] = frozenset({"logs", "diagnostics", "benchmark"})

COMMAND_FILTER = "cmd/+"
RESULT_FILTER = "cmd/+/result"
_COMMAND = re.compile(r"cmd/([a-z0-9-]{1,63})\Z")
_RESULT = re.compile(r"cmd/([a-z0-9-]{1,63})/result\Z")

# As JSON; whatever it is made of, it then fits a payload, compressed and in base64.
MAX_OUTPUT_BYTES = 160 << 10
# Larger ones are compressed. Below it a dashboard, or a person, reads the payload as it is.
PLAIN_OUTPUT_BYTES = 4 << 10
# Deeper than any of ours; who stores or shows an output does so by recursion.
MAX_OUTPUT_DEPTH = 32
MAX_TTL_S = 30 * 86_400.0

# Why a command did not come to be done.
MEANING: Mapping[str, str] = {
    "untrusted": "no key that the device trusts signed it",
    "malformed": "it is not a command",
    "wrong_id": "the topic bears another id than the command",
    "wrong_device": "it is for another device",
    "replayed": "the device has passed its number",
    "other_boot": "it is for another start of the daemon",
    "stale": "by the device's clock it is not valid now, and no challenge was answered",
    "unknown_kind": "the device does not know the kind",
    "not_allowed": "the device's `[commands]` does not allow the kind",
    "bad_arguments": "an argument is missing, unknown or wrong",
    "storage": "the state folder cannot be written; nothing that changes something is done then",
    "busy": "too much is under way; ask again later",
    "not_served": "no such model serves there",
    "not_possible": "the device's state or configuration does not allow it; the detail says why",
    "time_limit": "it took longer than it may",
    "error": "it failed in a way that was foreseen; the detail says how",
    "internal": "it failed in a way that nobody foresaw; the device's log has the traceback",
    "killed": "the daemon ended meanwhile; how far it came is not known",
}

Device = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,63}/[a-z0-9-]{1,63}\Z")]
Nonce = Boot
Value = str | int | float | bool | None
State = Literal["running", "done", "failed", "refused", "interrupted"]
Reason = Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,40}\Z")]
Level = Literal["debug", "info", "warning", "error"]


class Command(Message, frozen=True, kw_only=True):
    """`cmd/{id}`: do this once.

    Attributes:
        id: the same each time that the command is sent again.
        device: `SITE/ID` of the only device that may take it.
        counter: above that of every command that this device was sent before.
        boot: the start of the daemon that may take it, as its `Status` says.
        challenge: what the device asked back where its clock could not tell whether this is fresh.
        issued_at, expires_at: by the coordinator's clock.
        limit_s: longest that it may run; the device's own limit holds as well.
        by: who asked, as the coordinator knows it; for the device's audit.
    """

    id: Id
    device: Device
    counter: Seq
    boot: Boot
    challenge: Nonce | None = None
    issued_at: Count
    expires_at: Count
    kind: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,40}\Z")]
    args: Annotated[dict[str, Value], msgspec.Meta(max_length=16)] = {}
    limit_s: Annotated[float, msgspec.Meta(gt=0, le=600)] | None = None
    by: Annotated[str, msgspec.Meta(max_length=200)] = ""


class CommandResult(Message, frozen=True, kw_only=True):
    """`cmd/{id}/result`: what came of it; `running` is followed by another one.

    Attributes:
        counter: highest that the device took.
        reason: code of why it is not `done`.
        detail: the same for people.
        challenge: send the command again with this, if it still counts; with reason `stale`.
        took_ms: how long it ran.
        output: of the kind, where it is small.
        packed: the same where it is not: base64 of a zlib stream of its JSON.
    """

    id: Id
    boot: Boot
    at: Count
    state: State
    counter: Count = 0
    reason: Reason | None = None
    detail: Text = ""
    challenge: Nonce | None = None
    took_ms: Count | None = None
    output: dict[str, Any] | None = None
    packed: Annotated[str, msgspec.Meta(max_length=MAX_PAYLOAD_BYTES)] | None = None


class Logs(Strict, frozen=True, kw_only=True):
    """The daemon's latest log lines, at least of `level`."""

    lines: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 200
    level: Level = "info"


class Diagnostics(Strict, frozen=True, kw_only=True):
    """Everything about the device's state, in one document."""


class Benchmark(Strict, frozen=True, kw_only=True):
    """The golden inputs of a served model, for some seconds, behind all other requests."""

    model: ModelName
    seconds: Annotated[float, msgspec.Meta(ge=0.1, le=30)] = 5.0


class Reload(Strict, frozen=True, kw_only=True):
    """A model closed and opened anew; without one, the configuration read anew."""

    model: ModelName | None = None


class Rollback(Strict, frozen=True, kw_only=True):
    """Back to the version of a model that served before."""

    model: ModelName


class Cancel(Strict, frozen=True, kw_only=True):
    """The update of a model that is under way ends; what serves goes on serving."""

    model: ModelName


class SetInterval(Strict, frozen=True, kw_only=True):
    """Seconds between two telemetry messages, also after a restart; without, as configured."""

    seconds: Annotated[float, msgspec.Meta(ge=1, le=86_400)] | None = None


ARGUMENTS: Mapping[Kind, type[Strict]] = {
    "logs": Logs,
    "diagnostics": Diagnostics,
    "benchmark": Benchmark,
    "reload": Reload,
    "rollback": Rollback,
    "cancel": Cancel,
    "set_interval": SetInterval,
}


class Signed(NamedTuple):
    """A command and the id of the key that signed it; "" where none had to."""

    command: Command
    key: str


def arguments(kind: Kind, given: Mapping[str, Value]) -> Strict:
    """The arguments of a kind, raising `UsageError` that names the wrong one."""
    try:
        return msgspec.convert(given, ARGUMENTS[kind])
    except msgspec.ValidationError as e:
        known = ", ".join(ARGUMENTS[kind].__struct_fields__) or "none"
        raise UsageError(f"command {kind}: {e}", hint=f"its arguments: {known}") from e


def encode(command: Command, *, key: SigningKey | None) -> bytes:
    """A command as it travels: in an envelope, or bare where the fleet has no identities."""
    raw = messages.encode(command)
    return raw if key is None else envelope.sign(raw, kind=envelope.COMMAND, key=key)


def decode(raw: bytes, *, trusted: Sequence[PublicKey] | None, topic: str) -> Signed:
    """Read a command from anybody.

    Args:
        raw: a payload of `cmd/{id}`.
        trusted: whose commands count; `None` takes unsigned ones, of an insecure fleet.
        topic: names it in errors.

    Raises:
        UntrustedError: none of these keys signed it.
        MessageError: it is not a command.
    """
    if trusted is None:
        return Signed(messages.decode(raw, Command, topic=topic), "")
    payload = envelope.open_(raw, kind=envelope.COMMAND, trusted=trusted, what=topic)
    # `open_` found the key of this id to have signed it.
    key = msgspec.json.decode(raw, type=_Keys).signatures[0].keyid
    return Signed(messages.decode(payload, Command, topic=topic), key)


def packed(output: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """`output` and `packed` of a result, one of them `None`.

    Raises `MessageError` where the output has more than `MAX_OUTPUT_BYTES`.
    """
    raw = msgspec.json.encode(output)
    if len(raw) > MAX_OUTPUT_BYTES:
        raise MessageError(
            f"the output has {len(raw)} bytes, at most {MAX_OUTPUT_BYTES} travel",
            hint="ask for less",
        )
    if len(raw) <= PLAIN_OUTPUT_BYTES:
        return output, None
    return None, base64.b64encode(zlib.compress(raw)).decode()


def output_of(result: CommandResult, *, topic: str) -> dict[str, Any] | None:
    """The output of a result, unpacked, raising `MessageError` where it is not valid.

    However much a stream claims to hold, no more than `MAX_OUTPUT_BYTES` of it are unpacked.
    """
    output = result.output if result.packed is None else _unpacked(result.packed, topic)
    if _is_deeper(output, MAX_OUTPUT_DEPTH):
        raise MessageError(f"{topic}: the output is nested deeper than {MAX_OUTPUT_DEPTH}")
    return output


def command_leaf(command_id: str) -> str:
    """Where a command is sent, below its device."""
    return f"cmd/{command_id}"


def result_leaf(command_id: str) -> str:
    """Where it is answered."""
    return f"cmd/{command_id}/result"


def command_id(leaf: str) -> str | None:
    """The id in a leaf `cmd/{id}`; `None` for another leaf."""
    found = _COMMAND.match(leaf)
    return found[1] if found else None


def result_id(leaf: str) -> str | None:
    """The id in a leaf `cmd/{id}/result`; `None` for another leaf."""
    found = _RESULT.match(leaf)
    return found[1] if found else None


def _unpacked(packed: str, topic: str) -> dict[str, Any]:
    try:
        stream = zlib.decompressobj()
        squeezed = base64.b64decode(packed, validate=True)
        raw = stream.decompress(squeezed, MAX_OUTPUT_BYTES + 1)
        if not stream.eof or len(raw) > MAX_OUTPUT_BYTES:
            raise MessageError(f"{topic}: packed holds more than {MAX_OUTPUT_BYTES} bytes, or less")
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (binascii.Error, zlib.error, msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise MessageError(f"{topic}: packed is not a zlib stream of JSON: {e}") from e


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


class _Key(msgspec.Struct, frozen=True):
    keyid: str


class _Keys(msgspec.Struct, frozen=True):
    signatures: tuple[_Key, ...]
