"""Open Inference Protocol v2 as its own client speaks it, and as nobody should."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import GoldenMismatch, NotServed, UsageError
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime.served import Wire, get, infer, inline, load, output, post, serving, worker

SAMPLES = bundles.samples(4)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)


@pytest.fixture(scope="module", params=[inline, worker])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    table = Models(measure=request.param)
    load(table, tmp_path_factory.mktemp("bundle"))
    return table


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[Server]:
    with serving(models) as running:
        yield running


def test_statistics_count_what_happened(server: Server) -> None:
    def stats(wire: Wire) -> Any:
        return wire.ask(get("/v2/models/tiny/stats")).json["model_stats"][0]

    with Wire(server) as wire:
        before = stats(wire)
        wire.ask(infer(SAMPLES[:3]))
        wire.ask(infer(SAMPLES[:1], tensor={"shape": [1, 15]}))
        after = stats(wire)

    def grew(*path: str) -> int:
        old: Any = before
        new: Any = after
        for key in path:
            old, new = old[key], new[key]
        return int(new) - int(old)

    assert grew("inference_count") == 3
    assert grew("execution_count") == 1
    assert grew("inference_stats", "success", "count") == 1
    assert grew("inference_stats", "fail", "count") == 1
    assert grew("inference_stats", "success", "ns") >= grew(
        "inference_stats", "compute_infer", "ns"
    )
    assert grew("inference_stats", "compute_infer", "ns") > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": {"name": "z"}}, "'z'"),
        ({"tensor": {"datatype": "FP64"}}, "'x' must be FP32"),
        ({"tensor": {"shape": [1, 15]}}, "'x' must have shape"),
        ({"tensor": {"shape": [-1, 16]}}, "'x' must have shape"),
        ({"tensor": {"shape": [0, 16]}}, "'x' must have shape"),
        ({"tensor": {"shape": [2, 16]}}, "'x' has 64 bytes"),
        ({"tensor": {"shape": [2**62, 16]}}, "'x' has 64 bytes"),
        ({"tensor": {"shape": [1, 16.5]}}, "shape"),
        ({"tensor": {"parameters": {"binary_data_size": 60}}}, "'x' has 60 bytes"),
        ({"tensor": {"parameters": {"binary_data_size": -64}}}, "'x' has -64 bytes"),
        ({"tensor": {"parameters": {}}}, "'x' has no data"),
        ({"tensor": {"data": [1]}}, "both"),
        ({"tensor": {"parameters": {"shared_memory_region": "r"}}}, "come together"),
        ({"tensor": {"parameters": {"shared_memory_byte_size": 64}}}, "come together"),
        ({"inputs": []}, "'x' is missing"),
        ({"outputs": [{"name": "z"}]}, "'z'"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": -3}}]}, "classification"),
        ({"parameters": {"timeout": -1}}, "timeout"),
        ({"parameters": {"priority": -1}}, "priority"),
        ({"parameters": {"priority": 10}}, "priority"),
        ({"parameters": {"cascade": 1.5}}, "cascade"),
    ],
)
def test_bad_input_is_named(server: Server, change: dict[str, Any], message: str) -> None:
    with Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1], **change))

        assert answer.status == 400
        assert message in answer.error
        np.testing.assert_array_equal(output(wire.ask(infer(SAMPLES[:1]))), EXPECTED[:1])


def test_bytes_that_nobody_announced_are_refused(server: Server) -> None:
    request = infer(SAMPLES[:1], inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 16],
                                          "data": SAMPLES[0].tolist()}])  # fmt: skip
    with Wire(server) as wire:
        assert "64 bytes follow the JSON" in wire.ask(request).error


def test_a_pinned_variant_answers(server: Server) -> None:
    with Wire(server) as wire:
        answer = wire.ask(infer(SAMPLES[:1], parameters={"variant": "float"}))
        other = wire.ask(infer(SAMPLES[:1], parameters={"variant": "int8"}))

    assert (other.status, "'int8'" in other.error) == (404, True)
    assert answer.json["parameters"] == {"variant": "float"}


def test_metrics_are_prometheus_text(server: Server) -> None:
    with Wire(server) as wire:
        wire.ask(infer(SAMPLES[:1]))
        wire.ask(get("/nothing"))
        answer = wire.ask(get("/metrics"))
    samples = {}
    for line in answer.body.decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            samples[name] = float(value)
    labels = 'model="tiny",version="1.0.0",variant="float"'

    assert answer.headers["content-type"].startswith("text/plain")
    assert samples[f"edgekit_requests_total{{{labels}}}"] >= 1
    count = samples[f"edgekit_request_seconds_count{{{labels}}}"]
    assert samples[f'edgekit_request_seconds_bucket{{{labels},le="+Inf"}}'] == count
    assert samples['edgekit_http_errors_total{status="404"}'] >= 1
    assert samples["process_resident_memory_bytes"] > 1 << 20


def test_an_untrusted_bundle_is_told_of_in_v2(tmp_path: Path) -> None:
    models = Models(measure=inline)
    models.activate(models.load(bundles.unpacked(tmp_path), verified_by=None))
    with serving(models) as server, Wire(server) as wire:
        assert wire.ask(get("/v2")).json["insecure"] == ["tiny 1.0.0"]


def test_the_highest_version_answers_by_default(tmp_path: Path) -> None:
    models = Models(measure=inline)
    for version in ("1.9.0", "1.10.0", "1.10.0-rc.1"):
        load(models, tmp_path, version=version, seed=len(version))
    with serving(models) as server, Wire(server) as wire:
        assert wire.ask(infer(SAMPLES[:1])).json["model_version"] == "1.10.0"
        pinned = infer(SAMPLES[:1], model="tiny/versions/1.9.0")
        assert wire.ask(pinned).json["model_version"] == "1.9.0"
        versions = wire.ask(get("/v2/models/tiny")).json["versions"]
        assert versions == ["1.9.0", "1.10.0-rc.1", "1.10.0"]


def test_a_version_given_twice_is_refused(tmp_path: Path) -> None:
    models = Models(measure=inline)
    served = load(models, tmp_path)

    with pytest.raises(UsageError, match="twice"):
        models.activate(served)
    models.close()


def test_a_model_that_computes_something_else_is_never_served(tmp_path: Path) -> None:
    models = Models(measure=inline)

    with pytest.raises(GoldenMismatch, match="output 'y'"):
        load(models, tmp_path, broken_golden=True)
    assert models.served() == []


@pytest.mark.parametrize("measure", [inline, worker])
def test_swapping_versions_under_load_loses_no_request(tmp_path: Path, measure: Any) -> None:
    models = Models(measure=measure)
    old = load(models, tmp_path, version="1.0.0")
    answers: list[int] = []
    stop = threading.Event()

    def ask(server: Server) -> None:
        with Wire(server) as wire:
            while not stop.is_set():
                answers.append(wire.ask(infer(SAMPLES[:1])).status)

    with serving(models) as server:
        threads = [threading.Thread(target=ask, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(1, 15):
            new = models.load(
                bundles.unpacked(tmp_path, version=f"1.{turn}.0"), verified_by="a key"
            )
            models.activate(new, replace=True)
            assert old.wait_closed(10)
            old = new
        stop.set()
        for thread in threads:
            thread.join()

        assert set(answers) == {200}
        assert [served.version for served in models.served()] == ["1.14.0"]
        assert sum(figure.requests for figure in models.figures()) == len(answers)
        assert models.figures() == []
        models.remove("tiny", "1.14.0")
        with pytest.raises(NotServed, match=r"1\.14\.0"):
            models.remove("tiny", "1.14.0")


def test_json_answers_a_json_request(server: Server) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16],
                        "data": [SAMPLES[0].tolist()]}]}  # fmt: skip
    with Wire(server) as wire:
        answer = wire.ask(post("/v2/models/tiny/infer", json.dumps(body).encode()))

    assert answer.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(
        np.array(answer.json["outputs"][0]["data"], dtype=np.float32), EXPECTED[0]
    )
