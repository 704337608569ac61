"""Request ids and the access log: both sides can hold their lines together, and none floods."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import EngineError, RequestError
from edgekit_runtime.serving.accesslog import AccessLog
from edgekit_runtime.serving.call import Call
from edgekit_runtime.serving.form import Form
from edgekit_runtime.serving.models import Models
from tests import bundles
from tests.clock import ManualClock
from tests.runtime.served import Wire, infer, inline, load, post, serving

LOGGER = "edgekit_runtime.serving.accesslog"
SAMPLES = bundles.samples(3)


def test_an_id_that_a_client_gives_comes_back_with_its_answer(tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)

    with serving(models) as server, Wire(server) as wire:
        named = wire.ask(infer(SAMPLES, headers=["X-Request-Id: abc/7"]))
        again = wire.ask(infer(SAMPLES, headers=["X-Request-Id: abc/8"]))
        plain = wire.ask(infer(SAMPLES))

    assert named.headers["x-request-id"] == "abc/7"
    assert again.headers["x-request-id"] == "abc/8"
    assert named.binary == plain.binary
    assert "x-request-id" not in plain.headers


@pytest.mark.parametrize("body", [b"{", b'{"inputs":[]}'])
def test_an_error_carries_the_id_too(body: bytes, tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)

    with serving(models) as server, Wire(server) as wire:
        answer = wire.ask(post("/v2/models/tiny/infer", body, "X-Request-Id: abc"))

    assert answer.status == 400
    assert answer.headers["x-request-id"] == "abc"


def test_at_level_debug_each_request_has_a_line_with_its_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    caplog.set_level(logging.DEBUG, LOGGER)

    with serving(models) as server, Wire(server) as wire:
        wire.ask(infer(SAMPLES, headers=["X-Request-Id: header"]))
        wire.ask(infer(SAMPLES, id="body"))
        wire.ask(infer(SAMPLES))

    lines = [record.__dict__ for record in caplog.records if record.name == LOGGER]
    assert [line.get("request_id") for line in lines] == ["header", "body", None]
    assert {(line["model"], line["variant"], line["rows"]) for line in lines} == {
        ("tiny", "float", 3)
    }


def test_at_level_info_a_usual_request_has_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    caplog.set_level(logging.INFO, LOGGER)

    with serving(models) as server, Wire(server) as wire:
        assert wire.ask(infer(SAMPLES)).status == 200
        assert wire.ask(infer(SAMPLES.astype(np.float32)[:, :3])).status == 400

    assert [record for record in caplog.records if record.name == LOGGER] == []


class Silent(Call):
    """A call that nobody waits for."""

    def answer(self, *_: object) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def waits(self, leave: object) -> None: ...


def a_call(request_id: str | None = None) -> Silent:
    form = Form(
        id="",
        values={},
        slots=(),
        binary_bytes=0,
        shared=(),
        shared_bytes=0,
        outputs=(),
        timeout_us=None,
        priority=0,
        variant=None,
        cascade=None,
        rows=2,
        shapes=(),
        pictures=None,
        finishes=False,
    )
    return Silent(form, None, "tiny", None, request_id)


def test_a_slow_request_has_a_line_at_level_info(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models(measure=inline)
    served = load(models, tmp_path)
    models.close()
    caplog.set_level(logging.INFO, LOGGER)
    AccessLog(slow_s=0.0).answered(a_call("slow"), served, served.default)

    (record,) = caplog.records
    assert record.getMessage() == "slow request"
    assert record.__dict__["request_id"] == "slow"


def test_lines_are_bounded_in_rate_and_say_how_many_were_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    clock = ManualClock()
    log = AccessLog(lines_per_s=5, clock=clock.monotonic)
    for _ in range(100):
        log.failed(a_call(), EngineError("broken"))
    clock.advance(1)
    log.failed(a_call(), EngineError("broken"))

    assert len(caplog.records) == 6
    assert caplog.records[-1].__dict__["left_out"] == 95


def test_what_clients_do_wrong_has_lines_at_level_debug_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    AccessLog().failed(a_call(), RequestError("wrong"))
    assert caplog.records == []

    caplog.set_level(logging.DEBUG, LOGGER)
    AccessLog().failed(a_call("x" * 4000), RequestError("wrong"))
    assert caplog.records[0].__dict__["status"] == 400
    assert len(caplog.records[0].__dict__["request_id"]) == 128
