"""Targets: bundles, and deltas between them.

A container is mostly zeros, which align its entries. So that inputs stay short, a zero byte of an
input of `bundle` stands for as many as the 16-bit number behind it says.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import re
import shutil
import struct
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import zstandard

from edgekit import bundle, container, tensors
from edgekit.bundle import GOLDEN_INPUTS, GOLDEN_REFERENCE, Bundle
from edgekit.delta.base import Base
from edgekit.delta.form import BLOCK_HEAD_BYTES, HEAD_BYTES, BlockHead, DeltaError, Head
from edgekit.delta.making import make
from edgekit.delta.rebuild import rebuild
from edgekit.errors import BundleError
from edgekit.manifest import Golden, Manifest, Model, Needs, TensorSpec, Variant, complete, encode
from edgekit.profile import DeviceProfile, EngineSpec, Placement, Quality
from tests.fuzz.target import Target, attempt

_MOST_ZEROS = 1 << 13
_ARTIFACT = "artifacts/float.onnx"


def open_bundle(raw: bytes) -> None:
    """A bundle opens and is as its manifest says, or is refused."""
    path = _folder() / "bundle.edge"
    path.write_bytes(_unfolded(raw))
    found = attempt(lambda: Bundle.open(path), BundleError)
    if isinstance(found, BundleError):
        return
    with found:
        for name, entry in found.manifest.entries.items():
            assert hashlib.sha256(found.read(name)).hexdigest() == entry.sha256
        for name in found.names():
            assert not Path(name).is_absolute()
            assert ".." not in Path(name).parts


def delta_file(raw: bytes) -> None:
    """A delta makes as many bytes as its head says, or is refused."""
    head = attempt(lambda: Head.decode(raw[:HEAD_BYTES]), DeltaError)
    if isinstance(head, Head):
        _rebuilt(head, raw[HEAD_BYTES:])


def delta_block(raw: bytes) -> None:
    """The payload of one block, under sizes that stand before it: its operations read nothing
    outside of the base and make what the block says."""
    makes, control = struct.unpack("<II", raw[:8].ljust(8, b"\0"))
    payload = raw[8:]
    packed = zstandard.ZstdCompressor().compress(payload)
    block = BlockHead(makes, control, len(payload), len(packed))
    head = Head(
        base_digest=f"sha256:{'0' * 64}",
        base_size_bytes=_base().size_bytes,
        digest=f"sha256:{'0' * 64}",
        target_sha256="0" * 64,
        target_size_bytes=max(makes, 1),
        blocks=1,
    )
    _rebuilt(head, block.encode() + packed)


def _rebuilt(head: Head, blocks: bytes) -> None:
    out = BytesIO()
    found = attempt(lambda: rebuild(BytesIO(blocks), head, _base(), out), DeltaError)
    assert len(out.getvalue()) <= head.target_size_bytes
    if not isinstance(found, DeltaError):
        assert len(out.getvalue()) == head.target_size_bytes
        assert found == hashlib.sha256(out.getvalue()).hexdigest()


@functools.cache
def _folder() -> Path:
    place = Path(tempfile.mkdtemp(prefix="edgekit-fuzz-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


@functools.cache
def _base() -> Base:
    return Base(_edge(0))


def _edge(step: int) -> Path:
    """A small bundle without a signature, whose weights are moved by some steps."""
    path = _folder() / f"{step}.edge"
    weights = np.arange(4096, dtype=np.uint32) % 251 + step * (np.arange(4096) % 300 == 0)
    entries = {
        _ARTIFACT: weights.astype(np.uint8).tobytes(),
        GOLDEN_INPUTS: tensors.encode({"x": np.ones((1, 2), np.float32)}),
        GOLDEN_REFERENCE: tensors.encode({"y": np.full((1, 64), 1 + step / 7, np.float32)}),
    }
    described = {name: bundle.describe(data) for name, data in entries.items()}
    raw = encode(complete(_MANIFEST, described))
    container.save(path, {bundle.MANIFEST: raw, **entries})
    return path


_MANIFEST = Manifest(
    name="tiny",
    version="1.2.0",
    profile=DeviceProfile(
        name="sample",
        title="",
        architecture="x86_64",
        engines=(EngineSpec(name="onnxruntime", version="1.31"),),
        quality=Quality(evidence="linted", checked="2026-11-01", sources=("made up",)),
    ),
    model=Model(
        source_sha256="ab" * 32,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 64)),),
    ),
    variants=(
        Variant(
            name="float",
            artifact=_ARTIFACT,
            engine="onnxruntime",
            accelerator="cpu",
            precision="fp32",
            needs=Needs(memory_mb=1),
            placement=Placement(),
            golden=Golden(reference_atol=1e-6),
        ),
    ),
)


def _folded(raw: bytes) -> bytes:
    return re.sub(rb"\0{1,8192}", lambda found: b"\0" + struct.pack("<H", len(found[0])), raw)


def _unfolded(raw: bytes) -> bytes:
    return re.sub(
        rb"(?s)\0(..)",
        lambda found: bytes(min(struct.unpack("<H", found[1])[0], _MOST_ZEROS)),
        raw,
    )


def _bundles() -> list[bytes]:
    smallest = BytesIO()
    container.write(smallest, {container.FIRST: b"{}"})
    return [_folded(smallest.getvalue()), _folded(_edge(0).read_bytes())]


def _deltas() -> list[bytes]:
    out = _folder() / "seed.delta"
    make(_edge(0), _edge(1), out)
    return [out.read_bytes()]


def _payloads(deltas: list[bytes]) -> list[bytes]:
    """The blocks of deltas, unpacked, behind what they make and the size of their operations."""
    found = []
    for raw in deltas:
        position = HEAD_BYTES
        while position < len(raw):
            start = position + BLOCK_HEAD_BYTES
            block = BlockHead.decode(raw[position:start])
            position = start + block.packed
            payload = zstandard.ZstdDecompressor().decompress(raw[start:position])
            found.append(struct.pack("<II", block.makes, block.control) + payload)
    return found


WORDS = [
    b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\x35\xd9",
    b"manifest.json", b"../", b"reports/", b"signature.sigstore.json", b'"entries":{',
    b'"format":1',
    b"\xff\xff\xff\xff", b"\x00\x01\x00", b"\x28\xb5\x2f\xfd", b"\xff\x7f", b"\x80\x80\x80",
]  # fmt: skip

_DELTAS = _deltas()
TARGETS = {
    "bundle": Target(open_bundle, _bundles(), WORDS),
    "delta": Target(delta_file, _DELTAS, WORDS),
    "block": Target(delta_block, _payloads(_DELTAS), WORDS),
}
