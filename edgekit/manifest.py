"""Manifest: what a bundle is, typed, checked once at the edge. docs/bundle.md is its reference."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import total_ordering
from typing import Annotated, Any, Literal

import msgspec

from edgekit.errors import ManifestError
from edgekit.profile import Accelerator, DeviceProfile, Placement
from edgekit.steps import PostStep, PreStep
from edgekit.structs import Strict

FORMAT: Literal[1] = 1
MAX_MANIFEST_BYTES = 4 << 20
MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 64
MAX_VERSION_CHARS = 128

_NUMBER = r"(0|[1-9][0-9]*)"
_PRE = r"(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
_BUILD = r"[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*"
SEMVER = rf"^{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-({_PRE}(?:\.{_PRE})*))?(?:\+{_BUILD})?\Z"
ENTRY = r"^(?!/)(?!.*//)(?!.*/\Z)(?!(?:.*/)?\.{1,2}(?:/|\Z))[A-Za-z0-9._/-]{1,200}\Z"

ModelName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
ModelVersion = Annotated[str, msgspec.Meta(pattern=SEMVER, max_length=MAX_VERSION_CHARS)]
EntryName = Annotated[str, msgspec.Meta(pattern=ENTRY)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Tolerance = Annotated[float, msgspec.Meta(ge=0)]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip


class TensorSpec(Strict, frozen=True, kw_only=True):
    """One input or output, named and typed as Open Inference Protocol v2 does.

    Attributes:
        shape: sizes; -1 stands for one that the caller chooses.
    """

    name: str
    datatype: Datatype
    shape: tuple[Annotated[int, msgspec.Meta(ge=-1)], ...]


class Model(Strict, frozen=True, kw_only=True):
    """The source model."""

    source_sha256: Sha256
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]


class Pipeline(Strict, frozen=True, kw_only=True):
    """Steps before and after the model, run by the daemon and by the build's evaluation alike."""

    pre: tuple[PreStep, ...] = ()
    post: tuple[PostStep, ...] = ()


class Needs(Strict, frozen=True, kw_only=True):
    """What a board must offer a variant."""

    memory_mb: Annotated[int, msgspec.Meta(ge=0)]
    onnx_ir: int | None = None
    opset: int | None = None


class Limits(Strict, frozen=True, kw_only=True):
    """What a variant may cost on the board; one that costs more does not serve there.

    Attributes:
        max_latency_ms: median time within the engine for one sample.
        max_memory_mb: that the open model holds.
    """

    max_latency_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_memory_mb: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Golden(Strict, frozen=True, kw_only=True):
    """What a device must reproduce before the variant serves.

    Attributes:
        outputs: the variant's own outputs where it was executed, else `None`.
        atol: absolute tolerance against `outputs`.
        rtol: relative tolerance against `outputs`.
        reference_atol: absolute tolerance against the source model's outputs.
    """

    outputs: EntryName | None = None
    atol: Tolerance | None = None
    rtol: Tolerance | None = None
    reference_atol: Tolerance

    def __post_init__(self) -> None:
        if len({self.outputs is None, self.atol is None, self.rtol is None}) != 1:
            raise ValueError("outputs, atol and rtol come together")


class Variant(Strict, frozen=True, kw_only=True):
    """One servable form of the model. The first of a manifest is the default."""

    name: ModelName
    artifact: EntryName
    engine: str
    accelerator: Accelerator
    precision: str
    options: dict[str, Any] = {}
    needs: Needs
    placement: Placement
    golden: Golden


class Artifact(Strict, frozen=True, kw_only=True):
    """What an entry must be, to the byte."""

    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=4 << 30)]


class Manifest(Strict, frozen=True, kw_only=True):
    """Everything that decides what a bundle is; its sha256 is the bundle's digest.

    Attributes:
        limits: left out of the JSON where the recipe sets none, so that such a bundle is what it
            always was, and readers that know no limits take it.
    """

    format: Literal[1] = FORMAT
    name: ModelName
    version: ModelVersion
    profile: DeviceProfile
    model: Model
    pipeline: Pipeline = Pipeline()
    limits: Limits | msgspec.UnsetType = msgspec.UNSET
    variants: Annotated[tuple[Variant, ...], msgspec.Meta(min_length=1, max_length=64)]
    entries: dict[EntryName, Artifact] = {}
    tools: dict[str, str] = {}
    not_reproducible: tuple[EntryName, ...] = ()

    def __post_init__(self) -> None:
        seen = [variant.name for variant in self.variants]
        if len(set(seen)) != len(seen):
            raise ValueError(f"two variants have one name: {', '.join(sorted(seen))}")

    def variant(self, name: str) -> Variant:
        """The variant called `name`, raising `ManifestError` for an unknown one."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.variants)
        raise ManifestError(f"{self.name} has no variant {name!r}", hint=f"it has {known}")


def complete(manifest: Manifest, entries: Mapping[str, Artifact]) -> Manifest:
    """The manifest with its entries; each artefact and golden file must be one of them."""
    manifest = msgspec.structs.replace(manifest, entries=dict(entries))
    _check_references(manifest)
    return manifest


def encode(manifest: Manifest) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, shortest form of each number."""
    return canonical(manifest)


def canonical(value: object) -> bytes:
    """The one byte form of a value that is signed, hashed or compared."""
    # A mapping with integer keys (a histogram) is sorted by the text of its keys, as JSON has it.
    plain = msgspec.to_builtins(value, str_keys=True, builtin_types=(msgspec.Raw,))
    return msgspec.json.encode(plain, order="sorted")


def decode(raw: bytes) -> Manifest:
    """Read `manifest.json`, raising `ManifestError` that names the wrong field.

    The bytes must be canonical: a digest names one text, and two readers must not see two
    manifests in it (a doubled key, say). Only the form of a number is free.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest.json has {len(raw)} bytes, at most {MAX_MANIFEST_BYTES}")
    _check_limits(raw, "manifest.json")
    try:
        found = msgspec.json.decode(raw, type=_Head).format
        if found != FORMAT:
            raise ManifestError(
                f"manifest.json has format {found!r}, this edgekit reads {FORMAT}",
                hint="update edgekit on this machine",
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise ManifestError(f"manifest.json is not valid: {e}") from e
    if raw != _canonical_form(raw):
        raise ManifestError(
            "manifest.json is not canonical JSON: sorted keys, each once, no spaces, UTF-8",
            hint="docs/bundle.md gives the form",
        )
    _check_references(manifest)
    return manifest


def decode_json(raw: bytes, what: str) -> Any:
    """Read JSON within limits of size and nesting, refusing doubled keys, NaN and infinity."""
    _check_limits(raw, what)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise ValueError(f"a key comes twice: {', '.join(key for key, _ in items)}")
        return found

    def constant(token: str) -> None:
        raise ValueError(f"{token} is not JSON")

    def number(text: str) -> float:
        if math.isfinite(value := float(text)):
            return value
        raise ValueError(f"{text} is out of range")

    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
        )
    except ValueError as e:
        raise ManifestError(f"{what} is not JSON as a bundle holds it: {e}") from e


class _Head(msgspec.Struct):
    format: Any


def _canonical_form(raw: bytes) -> bytes:
    """The canonical form of a JSON text, its numbers left as they are."""

    def verbatim(number: str) -> msgspec.Raw:
        return msgspec.Raw(number.encode())

    return canonical(json.loads(raw, parse_int=verbatim, parse_float=verbatim))


def _check_references(manifest: Manifest) -> None:
    for variant in manifest.variants:
        for entry in (variant.artifact, variant.golden.outputs):
            if entry is not None and entry not in manifest.entries:
                raise ManifestError(f"variant {variant.name} names {entry}, not in entries")


def _check_limits(raw: bytes, what: str) -> None:
    if len(raw) > MAX_JSON_BYTES:
        raise ManifestError(f"{what} has {len(raw)} bytes, at most {MAX_JSON_BYTES}")
    # Escapes stand only in strings. Linear in the input and flat in memory, whatever it holds.
    depth = 0
    for token in _TOKEN.finditer(raw.replace(rb"\\", b"").replace(rb"\"", b"")):
        depth += _STEP.get(token[0], 0)
        if depth > MAX_JSON_DEPTH:
            raise ManifestError(f"{what} is nested deeper than {MAX_JSON_DEPTH}")


_TOKEN = re.compile(rb'"[^"]*"?|[\[\]{}]')
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


@total_ordering
class Version:
    """A semantic version that orders as semver.org 2.0.0 says; build metadata does not order."""

    def __init__(self, text: str) -> None:
        match = re.match(SEMVER, text) if len(text) <= MAX_VERSION_CHARS else None
        if match is None:
            raise ManifestError(
                f"{text[:MAX_VERSION_CHARS]!r} is not a semantic version",
                hint="write it as MAJOR.MINOR.PATCH",
            )
        self.text = text
        self._numbers = tuple(int(part) for part in match.group(1, 2, 3))
        pre = match.group(4)
        self._pre = None if pre is None else tuple(_identifier(part) for part in pre.split("."))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key() == other._key()

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Version({self.text!r})"

    def _key(self) -> tuple[tuple[int, ...], bool, tuple[tuple[int, int, str], ...]]:
        # A release orders above its own pre-releases: True sorts after False.
        return self._numbers, self._pre is None, self._pre or ()


def _identifier(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdigit() else (1, 0, part)
