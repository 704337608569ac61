"""A bundle that costs a board more than its manifest allows never serves there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgekit import manifest
from edgekit.errors import EngineError, LatencyExceeded, MemoryExceeded, PlacementBroken
from edgekit.manifest import Limits
from edgekit.recipe import Budget
from edgekit_converters.assemble import limits_of
from edgekit_runtime.limits import Footprint
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.opener import open_variant
from edgekit_runtime.serving.plan import Workers
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.settings import Settings
from tests import bundles

HEAVY = bundles.mlp((bundles.FEATURES, 4096, 2048, bundles.CLASSES))
"""Weights of 34 MB."""


@pytest.fixture
def models() -> Models:
    return Models()


def closed(served: Served, models: Models) -> Served:
    models.discard(served)
    assert served.wait_closed(10)
    return served


def test_a_variant_that_is_too_slow_is_refused_with_the_figures(
    tmp_path: Path, models: Models
) -> None:
    bundle = bundles.unpacked(tmp_path, limits=Limits(max_latency_ms=1e-6))

    with pytest.raises(LatencyExceeded, match=r"float: a sample takes .* ms .* allows 1e-06 ms"):
        models.load(bundle, verified_by="a key")


@pytest.mark.parametrize("workers", ["thread", "process"])
def test_a_variant_that_holds_too_much_memory_is_refused_with_the_figures(
    tmp_path: Path, workers: Workers
) -> None:
    models = Models(Settings(workers=workers))
    bundle = bundles.unpacked(tmp_path, model=HEAVY, limits=Limits(max_memory_mb=15))

    with pytest.raises(MemoryExceeded, match=r"holds \d+\.\d MB on this board, .* allows 15 MB"):
        models.load(bundle, verified_by="a key")


@pytest.mark.parametrize("workers", ["thread", "process"])
def test_a_variant_within_its_limits_serves_and_says_what_it_costs(
    tmp_path: Path, workers: Workers
) -> None:
    models = Models(Settings(workers=workers))
    limits = Limits(max_latency_ms=60_000, max_memory_mb=4000)
    bundle = bundles.unpacked(tmp_path, model=HEAVY, limits=limits)

    probe = closed(models.load(bundle, verified_by="a key"), models).probe

    assert 0 < probe.latency_ms < 60_000
    assert probe.memory_mb is not None
    assert 20 < probe.memory_mb < 4000


def test_the_next_variant_serves_where_the_first_breaks_a_limit(
    tmp_path: Path, models: Models
) -> None:
    bundle = bundles.unpacked(
        tmp_path, model=HEAVY, beside={"small": bundles.mlp()}, limits=Limits(max_memory_mb=15)
    )

    served = closed(models.load(bundle, verified_by="a key"), models)

    assert served.variant.name == "small"
    assert "allows 15 MB" in served.skipped["float"]


def test_a_version_that_kept_its_limits_once_is_not_lost_in_a_busy_moment(
    tmp_path: Path, models: Models
) -> None:
    bundle = bundles.unpacked(tmp_path, limits=Limits(max_latency_ms=1e-6, max_memory_mb=1e-6))

    served = closed(models.load(bundle, verified_by="a key", proven=True), models)

    assert served.probe.memory_mb is None


def test_without_limits_nothing_is_held_against_a_variant(tmp_path: Path, models: Models) -> None:
    served = closed(models.load(bundles.unpacked(tmp_path), verified_by="a key"), models)

    assert served.probe.memory_mb is None
    assert served.probe.latency_ms > 0


def test_memory_that_nobody_looked_at_before_is_not_guessed(tmp_path: Path) -> None:
    bundle = bundles.unpacked(tmp_path)
    session = open_variant(bundle, bundle.manifest.variants[0])

    assert Footprint(None).grown_bytes(session) is None


def test_a_broken_placement_is_the_reason_where_nothing_else_runs(
    tmp_path: Path, models: Models
) -> None:
    plain = bundles.unpacked(tmp_path / "plain").manifest.variants[0]
    astray = msgspec.structs.replace(plain, name="npu", accelerator="npu")
    bundle = bundles.unpacked(tmp_path, variants=[astray], limits=Limits(max_latency_ms=1e-6))

    with pytest.raises(PlacementBroken, match=r"no variant of tiny .* npu: .* the MACs"):
        models.load(bundle, verified_by="a key")


def test_what_breaks_a_limit_is_an_error_of_the_engine() -> None:
    assert issubclass(LatencyExceeded, EngineError)
    assert issubclass(MemoryExceeded, EngineError)


def test_limits_of_a_recipe_reach_the_manifest() -> None:
    assert limits_of(Budget(max_latency_ms=5)) == Limits(max_latency_ms=5)
    assert limits_of(Budget(max_memory_mb=7)) == Limits(max_memory_mb=7)
    assert limits_of(Budget(max_size_mb=3)) is msgspec.UNSET


def test_limits_stand_in_the_manifest_only_where_there_are_some(tmp_path: Path) -> None:
    limited = bundles.unpacked(tmp_path / "a", limits=Limits(max_latency_ms=5))
    unlimited = bundles.unpacked(tmp_path / "b")

    assert b'"limits":{"max_latency_ms":5.0,"max_memory_mb":null}' in manifest.encode(
        limited.manifest
    )
    assert b"limits" not in manifest.encode(unlimited.manifest)
