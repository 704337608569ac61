"""A delta: from the bundle that a device has to the one it is to have, byte for byte or not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import container, delta, tensors
from edgekit.bundle import Bundle
from edgekit.delta import DeltaError, DeltaReport, NotSmaller
from edgekit.delta.base import Base
from edgekit.delta.form import (
    BLOCK_BYTES,
    BLOCK_HEAD_BYTES,
    HEAD_BYTES,
    LITERAL,
    SPARSE,
    BlockHead,
    Head,
    Operation,
    decode_operations,
    encode_operations,
)
from edgekit.errors import BundleError, StorageError
from tests import bundles

pytestmark = pytest.mark.filterwarnings("error")
MEGABYTE = 1 << 20


def pack(path: Path, entries: dict[str, bytes]) -> Path:
    """A container that has a first entry, which is all that a delta asks of a bundle."""
    container.save(path, {container.FIRST: b"{}", **entries})
    return path


def rebuilt(old: Path, patch: Path, new: Path) -> bytes:
    """What a delta makes, as a device would that wants `new`."""
    raw = new.read_bytes()
    out = patch.with_suffix(".out")
    sha256 = hashlib.sha256(raw).hexdigest()
    delta.apply(old, patch, out, wanted_sha256=sha256, wanted_size_bytes=len(raw))
    return out.read_bytes()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two versions of a real bundle: some of its weights moved, the version, the signature."""
    model = bundles.mlp((16, 64, 4))
    old = bundles.write(tmp_path / "old", model=model)
    new = bundles.write(tmp_path / "new", model=bundles.mlp((16, 64, 4), seed=1), version="1.1.0")
    return old, new


@pytest.fixture
def patch(tmp_path: Path, pair: tuple[Path, Path]) -> Path:
    delta.make(*pair, tmp_path / "patch")
    return tmp_path / "patch"


def test_a_bundle_is_rebuilt_from_the_file_of_another_one(
    pair: tuple[Path, Path], patch: Path
) -> None:
    old, new = pair

    assert rebuilt(old, patch, new) == new.read_bytes()


def test_a_bundle_is_rebuilt_from_a_slot(
    pair: tuple[Path, Path], patch: Path, tmp_path: Path
) -> None:
    old, new = pair
    with Bundle.open(old) as bundle:
        slot = bundle.unpack(tmp_path / "a")

    assert rebuilt(slot, patch, new) == new.read_bytes()


def test_a_delta_says_what_it_is_between_and_what_it_costs(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = pair

    report = delta.make(old, new, tmp_path / "patch")

    raw = (tmp_path / "patch").read_bytes()
    with Bundle.open(old) as before, Bundle.open(new) as after:
        assert (report.base_digest, report.digest) == (before.digest, after.digest)
        assert set(report.entries) == {"", *after.names()}
    assert (report.sha256, report.size_bytes) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert HEAD_BYTES + sum(report.entries.values()) == len(raw)
    head = delta.read_head(tmp_path / "patch")
    assert (head.base_digest, head.digest) == (report.base_digest, report.digest)
    assert head.target_sha256 == report.target_sha256
    assert head.target_size_bytes == report.target_size_bytes == new.stat().st_size


def test_the_same_two_bundles_give_the_same_delta(pair: tuple[Path, Path], tmp_path: Path) -> None:
    delta.make(*pair, tmp_path / "first")
    delta.make(*pair, tmp_path / "second")

    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_bundle_that_is_all_new_has_no_delta(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    old = pack(tmp_path / "old.edge", {"a": random.bytes(1 << 18)})
    new = pack(tmp_path / "new.edge", {"a": random.bytes(1 << 18)})
    (tmp_path / "patch").write_bytes(b"what stood there")

    with pytest.raises(NotSmaller, match="not worth it"):
        delta.make(old, new, tmp_path / "patch")

    assert (tmp_path / "patch").read_bytes() == b"what stood there"


def test_another_base_is_refused(pair: tuple[Path, Path], patch: Path, tmp_path: Path) -> None:
    other = bundles.write(tmp_path / "other", seed=7)

    with pytest.raises(DeltaError, match="is not for what lies in"):
        rebuilt(other, patch, pair[1])


def test_another_target_is_refused(pair: tuple[Path, Path], patch: Path) -> None:
    with pytest.raises(DeltaError, match="another file than the one that is wanted"):
        rebuilt(pair[0], patch, pair[0])


def test_a_base_with_one_changed_byte_makes_no_file(
    pair: tuple[Path, Path], patch: Path, tmp_path: Path
) -> None:
    old, new = pair
    with Bundle.open(old) as bundle:
        slot = bundle.unpack(tmp_path / "a")
    inputs = slot / "golden/inputs.safetensors"
    raw = bytearray(inputs.read_bytes())
    raw[-1] ^= 1
    inputs.write_bytes(raw)

    with pytest.raises(DeltaError, match="sha256"):
        rebuilt(slot, patch, new)

    assert not patch.with_suffix(".out").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_base_that_is_no_bundle_is_refused(
    pair: tuple[Path, Path], patch: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()

    for nothing in (tmp_path / "empty", tmp_path / "none.edge"):
        with pytest.raises(BundleError):
            rebuilt(nothing, patch, pair[1])
    with pytest.raises(StorageError, match="cannot be read"):
        rebuilt(pair[0], tmp_path / "none", pair[1])


def test_a_delta_cut_at_any_length_is_refused(pair: tuple[Path, Path], patch: Path) -> None:
    raw = patch.read_bytes()
    for length in (*range(200), *range(200, len(raw), 97), len(raw) - 1):
        patch.write_bytes(raw[:length])

        with pytest.raises(DeltaError):
            rebuilt(*(pair[0], patch, pair[1]))


@given(position=st.integers(0, 1 << 20), bit=st.integers(0, 7))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_delta_with_one_changed_bit_makes_the_same_file_or_none(
    pair: tuple[Path, Path], patch: Path, position: int, bit: int
) -> None:
    old, new = pair
    raw = bytearray(patch.read_bytes())
    raw[position % len(raw)] ^= 1 << bit
    changed = patch.with_name("changed")
    changed.write_bytes(raw)
    changed.with_suffix(".out").unlink(missing_ok=True)

    try:
        assert rebuilt(old, changed, new) == new.read_bytes()
    except DeltaError:
        assert not changed.with_suffix(".out").exists()


def one_block(control: bytes, rest: bytes, *, makes: int, claims: int | None = None) -> bytes:
    """A delta of a single block, for a base of `tests` and with any target."""
    payload = control + rest
    packed = zstandard.ZstdCompressor(write_content_size=True).compress(payload)
    size = len(payload) if claims is None else claims
    return BlockHead(makes, len(control), size, len(packed)).encode() + packed


HostileBlock = Callable[[], bytes]
HOSTILE: dict[str, HostileBlock] = {
    "unfolds to more than it says": lambda: one_block(b"\x01", bytes(1 << 20), makes=9, claims=10),
    "says it unfolds to gigabytes": lambda: BlockHead(1, 1, 2, 40).encode() + _bomb(),
    "reads before the base": lambda: one_block(_ops(Operation(0, 8, -1)), b"", makes=8),
    "reads behind the base": lambda: one_block(_ops(Operation(0, 8, 1 << 40)), b"", makes=8),
    "makes too little": lambda: one_block(_ops(Operation(LITERAL, 4, 0)), b"abcd", makes=8),
    "makes nothing": lambda: one_block(_ops(Operation(LITERAL, 0, 0)), b"", makes=8),
    "has an odd width": lambda: one_block(_ops(Operation(4, 6, 0)), bytes(6), makes=6),
    "has an unknown operation": lambda: one_block(_ops(Operation(7, 8, 0)), b"", makes=8),
    "lacks its literals": lambda: one_block(_ops(Operation(LITERAL, 8, 0)), b"", makes=8),
    "has literals left": lambda: one_block(_ops(Operation(0, 8, 0)), b"a", makes=8),
    "has an endless number": lambda: one_block(b"\xff" * 9, b"", makes=9),
    "differs nowhere": lambda: one_block(_ops(Operation(SPARSE, 8, 0)), b"", makes=8),
    "differs beyond the end": lambda: one_block(
        _ops(Operation(SPARSE, 8, 0, 1, 1)), b"\x08\x01", makes=8
    ),
    "has a gap without end": lambda: one_block(
        _ops(Operation(SPARSE, 8, 0, 1, 1)), b"\xff\x01", makes=8
    ),
}


def _ops(*operations: Operation) -> bytes:
    return encode_operations(operations)


def _bomb() -> bytes:
    """A frame that says it unfolds to 8 GiB."""
    return b"\x28\xb5\x2f\xfd\xe0" + (8 << 30).to_bytes(8, "little") + bytes(27)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_block_that_breaks_a_rule_is_refused_before_anything_is_written(
    what: str, tmp_path: Path
) -> None:
    old = pack(tmp_path / "old.edge", {"a": bytes(100)})
    block = HOSTILE[what]()
    with Base(old) as base:
        head = Head(
            base_digest=base.digest(),
            base_size_bytes=base.size_bytes,
            digest=f"sha256:{'0' * 64}",
            target_sha256="0" * 64,
            target_size_bytes=9,
            blocks=1,
        )
    (tmp_path / "patch").write_bytes(head.encode() + block)

    with pytest.raises(DeltaError, match="damaged"):
        delta.apply(
            old,
            tmp_path / "patch",
            tmp_path / "out",
            wanted_sha256="0" * 64,
            wanted_size_bytes=9,
        )

    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.edge", "patch"]


@given(st.binary(max_size=HEAD_BYTES + 9))
def test_any_bytes_are_a_head_or_refused(raw: bytes) -> None:
    try:
        head = Head.decode(raw)
    except DeltaError:
        return
    assert Head.decode(head.encode()) == head


@given(st.binary(max_size=BLOCK_HEAD_BYTES))
def test_any_bytes_are_the_head_of_a_block_or_refused(raw: bytes) -> None:
    try:
        block = BlockHead.decode(raw)
    except DeltaError:
        return
    assert block.makes <= BLOCK_BYTES


@given(control=st.binary(max_size=64), makes=st.integers(1, 300), base=st.integers(0, 300))
def test_any_operations_stay_within_base_and_block_or_are_refused(
    control: bytes, makes: int, base: int
) -> None:
    try:
        operations = decode_operations(control, makes=makes, base_size_bytes=base)
    except DeltaError:
        return
    assert sum(operation.length for operation in operations) == makes
    assert all(o.old + o.length <= base for o in operations if o.kind != LITERAL)


names = st.sampled_from(["a.onnx", "b.safetensors", "c/d.json", "c/e", "f"])
contents = st.binary(max_size=600) | st.builds(
    lambda seed, count: np.random.default_rng(seed).bytes(count),
    st.integers(0, 3),
    st.integers(0, 6000),
)
edits = st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 40), st.binary(max_size=40)))


@given(before=st.dictionaries(names, contents), after=st.dictionaries(names, contents), edits=edits)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_delta_is_made_of_it_rebuilds(
    tmp_path: Path,
    before: dict[str, bytes],
    after: dict[str, bytes],
    edits: list[tuple[int, int, bytes]],
) -> None:
    for name in sorted(before.keys() - after.keys()):
        changed = before[name]
        for start, removed, added in edits:
            changed = changed[:start] + added + changed[start + removed :]
        after = {**after, name: changed}
    old = pack(tmp_path / "old.edge", before)
    new = pack(tmp_path / "new.edge", after)

    try:
        delta.make(old, new, tmp_path / "patch")
    except NotSmaller:
        return

    assert rebuilt(old, tmp_path / "patch", new) == new.read_bytes()


def trained(tmp_path: Path, move: Callable[[np.random.Generator, int], object]) -> DeltaReport:
    """The delta of a megabyte of int8 weights and of floats, moved in some way, rebuilt."""
    random = np.random.default_rng(0)
    weights = random.normal(0, 30, MEGABYTE + 5000).clip(-127, 127).astype(np.int8)
    scales = random.uniform(1e-3, 1e-2, 4000).astype(np.float32)

    def packed(name: str, steps: object, factor: float) -> Path:
        moved = (weights + np.asarray(steps)).astype(np.int8)
        floats = (scales * np.float32(factor)).astype(np.float32)
        raw = tensors.encode({"weights": moved, "scales": floats})
        return pack(tmp_path / name, {"m.safetensors": raw})

    old = packed("old.edge", 0, 1.0)
    new = packed("new.edge", move(random, len(weights)), 1.0001)
    report = delta.make(old, new, tmp_path / "patch")
    assert rebuilt(old, tmp_path / "patch", new) == new.read_bytes()
    return report


def test_weights_that_all_move_a_little_cost_less_than_two_bits_each(tmp_path: Path) -> None:
    report = trained(tmp_path, lambda random, count: random.integers(-1, 2, count))

    assert report.size_bytes < 0.25 * report.target_size_bytes


def test_few_weights_that_move_cost_little(tmp_path: Path) -> None:
    report = trained(tmp_path, lambda random, count: random.random(count) < 0.005)

    assert report.size_bytes < 0.015 * report.target_size_bytes


def test_equal_entries_cost_nothing_but_their_headers(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(3 * MEGABYTE + 5)
    old = pack(tmp_path / "old.edge", {"a": noise, "b": b"1" * 50})
    new = pack(tmp_path / "new.edge", {"a": noise, "b": b"2" * 50})

    report = delta.make(old, new, tmp_path / "patch")

    assert rebuilt(old, tmp_path / "patch", new) == new.read_bytes()
    assert report.size_bytes < 1000


def test_what_moved_to_another_entry_is_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(50_000)
    old = pack(tmp_path / "old.edge", {"a": noise})
    new = pack(tmp_path / "new.edge", {"z.bin": b"something before" + noise[1234:] + b"and behind"})

    report = delta.make(old, new, tmp_path / "patch")

    assert rebuilt(old, tmp_path / "patch", new) == new.read_bytes()
    assert report.size_bytes < 700
