"""Metrics: valid Prometheus text, names by its rules, true figures, a bounded number of series."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edgekit_runtime import sensors
from edgekit_runtime.sensors import Board
from edgekit_runtime.serving import metrics
from edgekit_runtime.serving.exposition import Distribution, family, histogram
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.serving.stats import Stages
from tests import bundles
from tests.runtime import trees
from tests.runtime.served import Wire, get, infer, inline, load, serving

SAMPLES = bundles.samples(8)
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values(text: str) -> Values:
    """Every sample by its name and labels, as Prometheus' own parser reads them."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for found in text_string_to_metric_families(text)
        for sample in found.samples
    }


def value(text: str, name: str, labels: Mapping[str, str]) -> float:
    return values(text)[name, frozenset(labels.items())]


def rendered(models: Models, board: Board | None = None) -> str:
    return metrics.render(
        models.served(), connections=2, http_errors={404: 3}, board=board
    ).decode()


def test_everything_is_valid_named_by_the_rules_and_said_what_it_is(tmp_path: Path) -> None:
    models = Models(Settings(cache_bytes=1 << 20), measure=inline)
    load(models, tmp_path)
    board = sensors.read_board(trees.plant("jetson-orin-nano", tmp_path / "board"))
    text = rendered(models, board)
    models.close()

    families = list(text_string_to_metric_families(text))
    assert len({found.name for found in families}) == len(families) > 25
    for found in families:
        assert re.fullmatch(r"(edgekit|process)(_[a-z0-9]+)+", found.name)
        assert found.documentation.endswith((".", "wraps."))
        assert found.type in ("counter", "gauge", "histogram")
        for sample in found.samples:
            assert sample.name.endswith("_total") == (found.type == "counter")
    assert text.endswith("\n")


def test_latencies_and_batches_are_histograms_of_what_happened(tmp_path: Path) -> None:
    models = Models(measure=inline)
    served = load(models, tmp_path)
    stats = served.default.stats
    stats.answered([0, 0, 0], taken_ns=10_000, done_ns=20_000, now_ms=1)
    stats.answered([0], taken_ns=0, done_ns=10**11, now_ms=1)
    for rows in (1, 3, 3, 500):
        stats.batch(rows, Stages(0, 1_000_000, 0))
    text = rendered(models)
    models.close()

    labels = {"model": "tiny", "version": "1.0.0", "variant": "float"}
    name = "edgekit_request_seconds"
    assert value(text, f"{name}_bucket", {**labels, "le": "1.6e-05"}) == 0
    assert value(text, f"{name}_bucket", {**labels, "le": "3.2e-05"}) == 3
    assert value(text, f"{name}_bucket", {**labels, "le": "+Inf"}) == 4
    assert value(text, f"{name}_count", labels) == 4
    assert value(text, f"{name}_sum", labels) == pytest.approx(100.00006)
    assert value(text, "edgekit_queue_seconds_total", labels) == pytest.approx(3e-5)
    assert value(text, "edgekit_batch_samples_bucket", {**labels, "le": "1"}) == 1
    assert value(text, "edgekit_batch_samples_bucket", {**labels, "le": "4"}) == 3
    assert value(text, "edgekit_batch_samples_sum", labels) == 507
    assert value(text, "edgekit_engine_seconds_total", labels) == pytest.approx(0.004)


def test_errors_and_refusals_have_their_kind_and_reason(tmp_path: Path) -> None:
    models = Models(measure=inline)
    served = load(models, tmp_path)
    served.stats.failed("deadline")
    served.default.stats.failed("lost")
    served.default.stats.failed("lost")
    served.stats.rejected("full")
    served.stats.cancelled()
    text = rendered(models)
    models.close()

    labels = {"model": "tiny", "version": "1.0.0"}
    assert value(text, "edgekit_request_errors_total", {**labels, "kind": "lost"}) == 2
    assert value(text, "edgekit_request_errors_total", {**labels, "kind": "deadline"}) == 1
    assert value(text, "edgekit_requests_rejected_total", {**labels, "reason": "full"}) == 1
    assert value(text, "edgekit_requests_cancelled_total", labels) == 1
    assert value(text, "edgekit_http_errors_total", {"status": "404"}) == 3


def test_each_variant_has_its_own_series(tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path, beside={"other": bundles.mlp(seed=3)})
    text = rendered(models)
    models.close()

    ready = {key: v for key, v in values(text).items() if key[0] == "edgekit_variant_ready"}
    assert {dict(labels)["variant"] for _, labels in ready} == {"float", "other"}


def test_clients_cannot_make_series(tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)

    with serving(models) as server, Wire(server) as wire:
        for rows in range(1, 30):
            wire.ask(infer(np.resize(SAMPLES, (rows, SAMPLES.shape[1])), id=f"id-{rows}"))
        before = len(values(wire.ask(get("/metrics")).body.decode()))
        for rows in range(30, 60):
            body = infer(
                np.resize(SAMPLES, (rows, SAMPLES.shape[1])), headers=[f"X-Request-Id: {rows}"]
            )
            assert wire.ask(body).status == 200
        assert len(values(wire.ask(get("/metrics")).body.decode())) == before


def test_a_board_is_told_of_in_base_units(tmp_path: Path) -> None:
    board = sensors.read_board(trees.plant("jetson-orin-nano", tmp_path))
    text = rendered(Models(), board)

    name = "edgekit_board"
    assert value(text, f"{name}_temperature_celsius", {"zone": "zone8 tj-thermal"}) == 63.031
    assert value(text, f"{name}_device_clock_hertz", {"device": "17000000.gpu"}) == 624.75e6
    assert value(text, f"{name}_device_load_ratio", {"device": "17000000.gpu"}) == 0.873
    assert value(text, f"{name}_power_watts", {"rail": "VDD_IN"}) == pytest.approx(14.999, abs=1e-3)
    assert value(text, f"{name}_throttled", {}) == 1


def test_a_board_that_tells_nothing_has_no_series() -> None:
    assert "edgekit_board" not in rendered(Models(), Board())


@given(
    st.dictionaries(
        st.sampled_from(["zone", "rail", "device"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\n"), max_size=20),
    )
)
def test_any_label_comes_back_as_it_was(labels: dict[str, str]) -> None:
    text = "\n".join(family("edgekit_x", "gauge", "Something.", [(labels, 1.5)])) + "\n"

    assert values(text) == {("edgekit_x", frozenset(labels.items())): 1.5}


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_a_histogram_grows_towards_its_count(counts: list[int]) -> None:
    lines = histogram("edgekit_x", "Something.", (1, 2, 4), [Distribution({}, counts, 7)])
    found = values("\n".join(lines) + "\n")

    buckets = [found["edgekit_x_bucket", frozenset({("le", le)})] for le in ("1", "2", "4", "+Inf")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found["edgekit_x_count", frozenset()] == sum(counts)
