"""Target: a bundle as signed metadata names it, and what daemon and child say to each other."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit.structs import Strict


class Delta(Strict, frozen=True, kw_only=True):
    """A way to the bundle from an older one.

    Attributes:
        base: digest of the older bundle.
        path: of the delta's own target.
        urls: where its file lies, one for each mirror, in their order.
    """

    base: str
    path: str
    sha256: str
    size_bytes: int
    urls: tuple[str, ...]


class Target(Strict, frozen=True, kw_only=True):
    """A bundle that a trusted role has signed for.

    Attributes:
        path: `NAME/VERSION/PROFILE.edge`, below `candidates/` for a round's candidate.
        sha256: of the whole file.
        digest: of the bundle.
        urls: where its file lies, one for each mirror, in their order.
        keys: public keys (PEM) of the role that signed for this path: whose bundles these are.
        candidate: whether that is the coordinator's key and not the release key.
        clock_behind_s: by how much this board's clock is behind what signed metadata proves; 0
            where it is not.
    """

    path: str
    sha256: str
    size_bytes: int
    digest: str
    urls: tuple[str, ...]
    deltas: tuple[Delta, ...]
    keys: tuple[str, ...]
    candidate: bool
    clock_behind_s: float = 0.0


class Request(Strict, frozen=True, kw_only=True):
    """What the child is asked.

    Attributes:
        path: target path.
        urls: bases of the repository and its mirrors; each ends in `/`.
        root: file of the root that this device trusted first.
        state: folder of the metadata that was trusted last.
        ca: certificates for https beside the system's.
        limit_s: for all of it, in seconds.
        limit_bytes: memory that the child may reserve.
    """

    path: str
    urls: tuple[str, ...]
    root: Path
    state: Path
    ca: Path | None
    limit_s: float
    limit_bytes: int


class Found(Strict, frozen=True, kw_only=True, tag="found"):
    """The repository has it."""

    target: Target


class Failed(Strict, frozen=True, kw_only=True, tag="failed"):
    """No repository gives it; `reason` is a code of `update.Reason`."""

    reason: str
    detail: str


class Passing(Strict, frozen=True, kw_only=True, tag="passing"):
    """It could not be asked now."""

    detail: str


class Disk(Strict, frozen=True, kw_only=True, tag="disk"):
    """This board's disk did not take the metadata."""

    errno: int
    detail: str


Answer = Found | Failed | Passing | Disk


def encode(message: Request | Answer) -> bytes:
    """A message as JSON."""
    return msgspec.json.encode(message, enc_hook=str)


def decode_request(raw: bytes) -> Request:
    """What the daemon wrote; it is our own, so it is well formed."""
    return msgspec.json.decode(raw, type=Request, dec_hook=_path)


def decode_answer(raw: bytes) -> Answer:
    """What the child wrote, raising `msgspec.MsgspecError` where it ended before the end of it."""
    decoder: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Found | Failed | Passing | Disk)
    return decoder.decode(raw)


def _path(kind: type, value: object) -> object:
    assert kind is Path, kind
    return Path(str(value))
