"""Targets: what a device is told to serve, signed and not."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekit import envelope, messages
from edgekit.errors import EdgekitError, MessageError, UntrustedError
from edgekit.messages import Desired, Wanted
from edgekit.signing import SigningKey
from edgekit_runtime import update
from edgekit_runtime.desired import DesiredState
from edgekit_runtime.update import Record, State
from tests.fuzz.target import Target, attempt

KEY = SigningKey.generate()
WANTED = Wanted(
    version="1.2.0",
    digest="sha256:" + "a" * 64,
    url="lite0/1.2.0/jetson.edge",
    sha256="b" * 64,
    size_bytes=5_267_114,
)
SEEDS = [
    Desired(serial=7, device="berlin/cam-1", models={"lite0": WANTED}),
    Desired(serial=1 << 53),
    Desired(serial=1, models={"a": WANTED, "b.c_d-9": WANTED}),
]


def plain(raw: bytes) -> None:
    """What is taken is kept as it is, grows in its serial, and can begin an update."""
    found = attempt(lambda: messages.decode(raw, Desired, topic="t"), MessageError)
    if isinstance(found, MessageError):
        return
    with tempfile.TemporaryDirectory() as folder:
        state = DesiredState(Path(folder))
        assert state.offer(found)
        assert state.take()
        assert not state.offer(found)
        again = DesiredState(Path(folder))
        assert (again.serial, again.models) == (found.serial, found.models)
    for wanted in found.models.values():
        begun = update.begin(Record(), serial=found.serial, wanted=wanted)
        assert begun is not None
        assert begun.state is State.FETCHING


def signed(raw: bytes) -> None:
    """Nothing that was changed after it was signed is read."""

    found = attempt(
        lambda: envelope.open_(raw, kind=envelope.DESIRED, trusted=[KEY.public], what="t"),
        EdgekitError,
    )
    if isinstance(found, EdgekitError):
        assert isinstance(found, (MessageError, UntrustedError))
        return
    assert found in PAYLOADS


PAYLOADS = [messages.encode(seed) for seed in SEEDS]
WORDS = [
    b'"serial":', b'"device":', b'"models":', b'"version":', b'"digest":', b'"url":', b'"sha256":',
    b'"size_bytes":', b'"payload":', b'"payloadType":', b'"signatures":', b'"keyid":', b'"sig":',
    b"9007199254740993", b"-1", b"1e400", b"null", b"[[[[", b"\\u0000", b"\\ud800", b"sha256:",
]  # fmt: skip
TARGETS = {
    "desired": Target(plain, PAYLOADS, WORDS),
    "signed desired": Target(
        signed, [envelope.sign(p, kind=envelope.DESIRED, key=KEY) for p in PAYLOADS], WORDS
    ),
}
