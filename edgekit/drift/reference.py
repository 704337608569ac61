"""Reference: what a model was given and answered at its build, in counts; `drift.json` of a bundle.

Each number of a view has its own bins: eighths of what was seen, and one more for what is not
finite. Counts are kept by cluster, the samples of one or of several groups: samples of one source
(crops of a photograph, seconds of a recording) resemble each other, and only the difference
between sources says how much counts vary by chance. The same samples give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit import manifest
from edgekit.drift.views import Floats, View
from edgekit.errors import ManifestError
from edgekit.manifest import ModelName
from edgekit.structs import Strict

ENTRY = "drift.json"

BINS = 9
"""Eight for what is finite, the last for what is not."""
NOT_FINITE = BINS - 1
MAX_CLUSTERS = 24
MAX_FEATURES = 72
"""Of inputs and all variants together: reference and windows then take 64 kB at most."""

_SEED = 7
_DIGITS = 7
_TOLERANCE = 1e-6

Counts = NDArray[np.uint16]
Count16 = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Feature(Strict, frozen=True, kw_only=True):
    """One number of a view, and how it lay.

    Attributes:
        edges: upper edges of the bins, rising; a value on an edge is below it. Above the last one
            is one more bin.
        counts: [clusters][edges + 2], the last for what is not finite.
    """

    name: str
    edges: Annotated[tuple[float, ...], msgspec.Meta(max_length=NOT_FINITE - 1)]
    counts: Annotated[
        tuple[tuple[Count16, ...], ...], msgspec.Meta(min_length=1, max_length=MAX_CLUSTERS)
    ]


class Part(Strict, frozen=True, kw_only=True):
    """The inputs, or the outputs of one variant.

    Attributes:
        samples: how many were looked at.
        groups: how many sources they come from.
        features: of all views, in their order.
    """

    samples: Annotated[int, msgspec.Meta(ge=1)]
    groups: Annotated[int, msgspec.Meta(ge=1)]
    views: tuple[View, ...]
    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        names = tuple(name for view in self.views for name in view.features)
        if names != tuple(feature.name for feature in self.features):
            raise ValueError("features are not those of the views")
        if len({len(feature.counts) for feature in self.features}) > 1:
            raise ValueError("features have different numbers of clusters")
        for feature in self.features:
            if any(len(row) != len(feature.edges) + 2 for row in feature.counts):
                raise ValueError(f"{feature.name} has not two counts more than edges")
            if list(feature.edges) != sorted(set(feature.edges)):
                raise ValueError(f"edges of {feature.name} do not rise")

    def edges(self) -> Floats:
        """Edges of all features [features, 7], infinite where a feature has fewer."""
        table = np.full((len(self.features), NOT_FINITE - 1), np.inf)
        for row, feature in zip(table, self.features, strict=True):
            row[: len(feature.edges)] = feature.edges
        return table

    def counts(self) -> Counts:
        """Counts of all features [clusters, features, 9]."""
        clusters = len(self.features[0].counts) if self.features else 0
        table = np.zeros((clusters, len(self.features), BINS), np.uint16)
        for at, feature in enumerate(self.features):
            rows = np.asarray(feature.counts, np.uint16)
            table[:, at, : len(feature.edges) + 1] = rows[:, :-1]
            table[:, at, NOT_FINITE] = rows[:, -1]
        return table


class Reference(Strict, frozen=True, kw_only=True):
    """`drift.json`."""

    format: Literal[1] = 1
    inputs: Part
    variants: dict[ModelName, Part] = {}

    def __post_init__(self) -> None:
        parts = (self.inputs, *self.variants.values())
        features = sum(len(part.features) for part in parts)
        if features > MAX_FEATURES:
            raise ValueError(f"{features} features, at most {MAX_FEATURES}")


def encode(reference: Reference) -> bytes:
    """Canonical JSON."""
    return manifest.canonical(reference)


def decode(raw: bytes) -> Reference:
    """Read `drift.json`, raising `ManifestError` that names what is wrong."""
    manifest.decode_json(raw, ENTRY)
    try:
        return msgspec.json.decode(raw, type=Reference)
    except msgspec.MsgspecError as e:
        raise ManifestError(f"{ENTRY} is not valid: {e}") from e


def part_of(views: Sequence[View], numbers: Floats, groups: NDArray[np.int64]) -> Part:
    """What samples were.

    Args:
        views: how they were looked at.
        numbers: [samples, features], as `View.measure` gives them.
        groups: [samples], equal for samples of one source.
    """
    members = clusters_of(groups)
    names = [name for view in views for name in view.features]
    features = []
    for at, name in enumerate(names):
        edges = edges_of(numbers[:, at])
        bins = bins_of(numbers[:, at : at + 1], _padded(edges))[:, 0]
        table = np.zeros((len(members), BINS), np.int64)
        for row, which in zip(table, members, strict=True):
            row += np.bincount(bins[which], minlength=BINS)
        counts = np.column_stack([table[:, : len(edges) + 1], table[:, NOT_FINITE]])
        features.append(Feature(name=name, edges=edges, counts=_rows(counts)))
    return Part(
        samples=len(groups),
        groups=len(np.unique(groups)),
        views=tuple(views),
        features=tuple(features),
    )


def clusters_of(groups: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Positions of samples in at most 24 clusters of whole groups.

    Groups are dealt out in an order that nothing about them decides: clusters that were made alike,
    in size say, would vary less than chance has it.
    """
    names = np.unique(groups)
    dealt = np.random.default_rng(_SEED).permutation(names)
    count = min(MAX_CLUSTERS, len(names))
    return [np.flatnonzero(np.isin(groups, dealt[at::count])) for at in range(count)]


def edges_of(values: Floats) -> tuple[float, ...]:
    """Edges that divide values [n] into eighths, or between any two where there are few.

    A number that never varied gets edges around it, so that whatever differs shows.
    """
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) == 0:
        return ()
    distinct = np.unique(finite)
    if len(distinct) == 1:
        value = float(distinct[0])
        margin = _TOLERANCE * max(1.0, abs(value))
        return _rising([value - margin, value + margin])
    if len(distinct) < NOT_FINITE:
        return _rising(_middles(distinct[:-1], distinct[1:]))
    places = np.arange(1, NOT_FINITE) * len(finite) // NOT_FINITE
    return _rising(_middles(finite[places - 1], finite[places]))


def _middles(lower: Floats, upper: Floats) -> Floats:
    # Halved before they are added: the sum of two large numbers may be no number any more.
    return lower / 2 + upper / 2


def bins_of(numbers: Floats, edges: Floats) -> NDArray[np.intp]:
    """Which bin each number [..., features] is in, given edges [features, 7]."""
    bins: NDArray[np.intp] = (numbers[..., np.newaxis] > edges).sum(axis=-1)
    bins[~np.isfinite(numbers)] = NOT_FINITE
    return bins


def _padded(edges: tuple[float, ...]) -> Floats:
    table = np.full((1, NOT_FINITE - 1), np.inf)
    table[0, : len(edges)] = edges
    return table


def _rising(edges: Floats | Sequence[float]) -> tuple[float, ...]:
    # Digits beyond the seventh are noise of the arithmetic of one machine.
    return tuple(sorted({float(f"{float(edge):.{_DIGITS}g}") for edge in edges}))


def _rows(counts: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in np.minimum(counts, 65535).tolist())
