"""Targets: commands that a device is sent, and answers that a coordinator is sent."""

from __future__ import annotations

import msgspec

from edgekit import control, messages
from edgekit.control import KINDS, Command, CommandResult
from edgekit.errors import EdgekitError, MessageError, UntrustedError, UsageError
from edgekit.manifest import canonical
from edgekit.signing import SigningKey
from edgekit_runtime.control.judge import Here, Refusal, judge
from tests.fuzz.target import Target, attempt

# A fuzzer cannot sign: what it changes must be refused.
KEY = SigningKey.generate()
HERE = Here(
    device="berlin/gate-1",
    boot="00000000000000aa",
    counter=7,
    latest="c7",
    now_ms=1_700_000_000_000,
    challenge="00000000000000cc",
)
COMMAND = Command(
    id="c8",
    device=HERE.device,
    counter=8,
    boot=HERE.boot,
    issued_at=HERE.now_ms - 1000,
    expires_at=HERE.now_ms + 1000,
    kind="logs",
    args={"lines": 10, "level": "error"},
    by="ada@desk",
)


def signed(raw: bytes) -> None:
    """Nothing that was changed after it was signed is read."""
    found = attempt(lambda: control.decode(raw, trusted=[KEY.public], topic="cmd/c8"), EdgekitError)
    if isinstance(found, EdgekitError):
        assert isinstance(found, (MessageError, UntrustedError))
        return
    assert found.key == KEY.public.id
    assert found.command in SIGNED


def unsigned(raw: bytes) -> None:
    """A command is taken under the rule, and its arguments are right, or it is refused in words."""
    found = attempt(lambda: control.decode(raw, trusted=None, topic="cmd/c8"), MessageError)
    if isinstance(found, MessageError):
        return
    command = found.command
    verdict = judge(command, HERE, topic_id="c8")
    if isinstance(verdict, Refusal):
        assert verdict.detail
    elif verdict == "take":
        assert (command.id, command.device, command.boot) == ("c8", HERE.device, HERE.boot)
        assert command.counter > HERE.counter
    for kind in KINDS:
        if command.kind == kind:
            attempt(lambda kind=kind: control.arguments(kind, command.args), UsageError)  # type: ignore[misc]


def result(raw: bytes) -> None:
    """An answer is read, and unpacked to no more than it may be."""
    found = attempt(lambda: messages.decode(raw, CommandResult, topic="t"), MessageError)
    if isinstance(found, MessageError):
        return
    output = attempt(lambda: control.output_of(found, topic="t"), MessageError)
    if found.packed is not None and isinstance(output, dict):
        assert len(msgspec.json.encode(output)) <= 8 * control.MAX_OUTPUT_BYTES
    canonical(None if isinstance(output, MessageError) else output)


def _result(**given: object) -> bytes:
    fields = {"id": "c8", "boot": HERE.boot, "at": 1, "state": "done", **given}
    return messages.encode(CommandResult(**fields))  # type: ignore[arg-type]


SIGNED = [
    COMMAND,
    msgspec.structs.replace(COMMAND, kind="benchmark", args={"model": "lite0", "seconds": 1.5}),
    msgspec.structs.replace(COMMAND, counter=7, challenge=HERE.challenge, limit_s=3.0),
    msgspec.structs.replace(COMMAND, id="c7", kind="dance", args={}),
]
WORDS = [
    b'"counter":', b'"boot":', b'"challenge":', b'"kind":', b'"args":', b'"model":',
    b'"signatures":', b'"payload":', b'"payloadType":', b'"keyid":', b'"packed":', b"null",
    b"1e400", b"-1", b"[[[[",
    b"\\u0000", b"\\ud800", b"9007199254740993", b'"stale"', b'"running"',
]  # fmt: skip
_LARGE = control.packed({"lines": ["line"] * 5000})[1]
TARGETS = {
    "command": Target(unsigned, [messages.encode(command) for command in SIGNED], WORDS),
    "envelope": Target(signed, [control.encode(command, key=KEY) for command in SIGNED], WORDS),
    "answer": Target(
        result, [_result(), _result(output={"a": [1]}), _result(packed=_LARGE)], WORDS
    ),
}
