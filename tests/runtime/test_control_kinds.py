"""What commands do on a real server with a real model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import control
from edgekit.bundle import Bundle
from edgekit.control import MAX_OUTPUT_BYTES, Benchmark, Diagnostics, Logs, Reload, SetInterval
from edgekit.errors import (
    BundleError,
    ConfigError,
    EngineError,
    NotServed,
    Overloaded,
    UsageError,
)
from edgekit.messages import ModelState
from edgekit_runtime.control import redact
from edgekit_runtime.control.hands import Hands
from edgekit_runtime.control.kinds import (
    benchmark,
    cancel,
    diagnostics,
    logs,
    reload,
    rollback,
    set_interval,
)
from edgekit_runtime.control.logring import MAX_LINE_CHARS, LogRing
from edgekit_runtime.opening import Opened
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.repository import Installed, Source
from edgekit_runtime.serving.server import new_event_loop
from tests import bundles
from tests.runtime.commanding import Rig, Shelf, config, hands
from tests.runtime.served import Wire, infer, load, output, serving, worker

SAMPLES = bundles.samples(2)
# Large enough that its engine, and not what is around it, takes the time of a request.
MODEL = bundles.mlp((bundles.FEATURES, 2500, 2500, bundles.CLASSES))


def never(_: float) -> bool:
    return False


def after(times: int) -> Any:
    """Says at which look the time is over."""
    left = iter(range(times))
    return lambda _: next(left, None) is None


# Logs.


@pytest.fixture
def ring() -> Iterator[LogRing]:
    held = LogRing(lines=50)
    held.attach()
    yield held
    held.detach()


def test_logs_are_the_latest_lines_of_a_level(ring: LogRing, tmp_path: Path) -> None:
    log = logging.getLogger("edgekit_runtime.test")
    log.setLevel(logging.DEBUG)
    for number in range(100):
        log.log(logging.ERROR if number % 10 == 0 else logging.DEBUG, "event %d", number)
    found = logs.run(Logs(lines=3, level="error"), hands(tmp_path, ring=ring), never)

    events = [json.loads(line)["event"] for line in found["lines"]]
    assert events == ["event 70", "event 80", "event 90"]


def test_however_much_was_logged_the_answer_fits(ring: LogRing, tmp_path: Path) -> None:
    for _ in range(20):
        logging.getLogger("edgekit").error("much", extra={"text": "\x00é\udcff" * 50_000})
    found = logs.run(Logs(lines=10_000, level="debug"), hands(tmp_path, ring=ring), never)

    assert 1 < len(found["lines"]) <= 20
    assert all(len(line) < MAX_LINE_CHARS + 40 for line in found["lines"])
    assert len(msgspec.json.encode(found)) <= MAX_OUTPUT_BYTES
    control.packed(found)


SECRETS = [
    "password=hunter2!",
    'token: "abc def"',
    "Authorization: Bearer abcdefghijkl",
    "mqtt://user:hunter2@host/",
    "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----",
    "-----BEGIN EC PRIVATE KEY-----\ncut off",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_log_line_holds_no_secret(ring: LogRing, secret: str) -> None:
    logging.getLogger("edgekit").warning("start %s end", secret, extra={"api_key": "hunter2"})
    (line,) = ring.tail(1, level=0, max_bytes=10_000)

    for word in ("hunter2", "abc def", "abcdefghijkl", "MIGH", "cut off"):
        assert word not in line
    assert "start" in line


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_what_has_no_secret_stays_as_it_is(value: Any) -> None:
    plain = json.dumps(value)
    if not any(sign in plain.lower() for sign in ("=", ":", "private", "bearer", "basic", "\\u")):
        assert redact.tree(value) == value


# The rest of the board.


def test_diagnostics_tell_versions_models_disk_and_clock_and_no_secret(tmp_path: Path) -> None:
    shelf = Shelf(tiny=ModelState(version="1.0.0", state="confirmed"))
    models = Models(measure=worker)
    load(models, tmp_path)
    found = diagnostics.run(
        Diagnostics(),
        hands(tmp_path, models=models, updates=shelf, certificate_expires_ms=lambda: 1),
        never,
    )
    models.close()

    assert found["versions"]["engines"]["onnxruntime"]
    assert found["config"]["device"]["site"] == "berlin"
    assert found["updates"]["tiny"]["state"] == "confirmed"
    assert found["models"][0]["version"] == "1.0.0"
    assert found["disk"]["free_bytes"] > 0
    assert (found["certificate_expires_ms"], found["link"]["connected"]) == (1, True)
    control.packed(found)


def test_the_interval_set_from_afar_survives_a_start_and_can_be_taken_back(tmp_path: Path) -> None:
    told: list[float] = []
    board = hands(tmp_path, set_interval=told.append)
    set_interval.run(SetInterval(seconds=5), board, never)
    set_interval.restore(hands(tmp_path, set_interval=told.append))
    set_interval.run(SetInterval(), board, never)
    set_interval.restore(board)

    assert told == [5, 5, 60.0]


def test_a_damaged_interval_leaves_the_configured_one(tmp_path: Path) -> None:
    with Rig(tmp_path, set_interval=lambda _: pytest.fail("nothing is set")):
        pass
    (tmp_path / "commands").mkdir(exist_ok=True)
    (tmp_path / "commands" / set_interval.FILE).write_bytes(b"\xff")
    assert set_interval.kept_s(hands(tmp_path)) is None


def test_reload_applies_the_interval_and_names_what_takes_a_restart(tmp_path: Path) -> None:
    told: list[float] = []
    old = config(tmp_path)
    assert old.fleet is not None
    fleet = msgspec.structs.replace(old.fleet, telemetry_interval_s=7.0)
    serve = msgspec.structs.replace(old.serve, queue_limit=9)
    new = msgspec.structs.replace(old, fleet=fleet, serve=serve)
    board = hands(tmp_path, config=old, reread=lambda: new, set_interval=told.append)

    assert reload.run(Reload(), board, never) == {
        "applied": ["fleet.telemetry_interval_s"],
        "waiting": ["serve.queue_limit"],
    }
    set_interval.run(SetInterval(seconds=5), board, never)
    assert reload.run(Reload(), board, never)["applied"] == []
    taken_back = set_interval.run(SetInterval(), board, never)
    assert taken_back == {"seconds": 7.0, "configured": 7.0}
    assert told == [7.0, 5, 7.0]


def test_a_wrong_configuration_is_told_and_changes_nothing(tmp_path: Path) -> None:
    def wrong() -> Any:
        raise ConfigError("device.toml: no field `listn`")

    with Rig(tmp_path, reread=wrong) as rig:
        result = rig.ask(rig.command("reload"))

    assert (result.state, result.reason) == ("failed", "not_possible")
    assert "listn" in result.detail


def test_rollback_and_cancel_are_answered_when_they_are_done(tmp_path: Path) -> None:
    shelf = Shelf(
        new=ModelState(version="1.1.0", state="confirmed"),
        late=ModelState(version="1.0.0", target="1.1.0", state="fetching"),
    )
    with Rig(tmp_path, updates=shelf) as rig:
        back = rig.ask(rig.command("rollback", args={"model": "new"}))
        ended = rig.ask(rig.command("cancel", args={"model": "late"}))
        refused = rig.ask(rig.command("cancel", args={"model": "late"}))

    assert back.output == {
        "model": "new", "before": "1.1.0", "version": "1.0.0", "reason": "asked",
    }  # fmt: skip
    assert ended.output is not None
    assert (ended.output["state"], ended.output["reason"]) == ("failed", "cancelled")
    assert refused.reason == "not_possible"


def test_a_rollback_that_nobody_sees_within_its_limit_says_so(tmp_path: Path) -> None:
    shelf = Shelf(new=ModelState(version="1.1.0", state="confirmed"))
    shelf.answers = False
    with pytest.raises(EngineError, match="has not yet"):
        rollback.run(control.Rollback(model="new"), hands(tmp_path, updates=shelf), after(3))
    # Nobody waits for it any more: it must not be done hours later.
    assert shelf.withdrawn == [("new", "rollback")]
    shelf.has_begun = True
    with pytest.raises(EngineError, match="has begun"):
        rollback.run(control.Rollback(model="new"), hands(tmp_path, updates=shelf), after(3))
    with pytest.raises(UsageError):
        cancel.run(control.Cancel(model="new"), hands(tmp_path, updates=shelf), never)


# A server.


class Board:
    """A server with one model, and hands that reach it."""

    def __init__(self, folder: Path) -> None:
        self.loop = new_event_loop()
        self.models = Models(measure=worker)
        self.served = load(self.models, folder, model=MODEL)
        path = self.served.folder
        self.repository = Installed(
            self.models,
            lambda: [Source("tiny", "1.0.0", partial(_opened, path))],
        )
        self.hands: Hands = hands(
            folder,
            models=self.models,
            repository=self.repository,
            on_loop=self.loop.call_soon_threadsafe,
        )


def _opened(path: Path) -> Opened:
    return Opened(Bundle.open(path), "a key")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[tuple[Board, Any]]:
    made = Board(tmp_path)
    with serving(made.models, loop=made.loop, repository=made.repository) as server:
        yield made, server


def test_a_benchmark_runs_the_golden_inputs_behind_other_requests(board: Any) -> None:
    made, _ = board
    found = benchmark.run(Benchmark(model="tiny", seconds=0.3), made.hands, never)

    assert found["runs"] > 3
    assert 0 < found["engine_ms"] <= found["p99_ms"]
    assert found["others"] == 0
    assert made.served.drift is None or made.served.drift.figures().rows == 0


def test_a_benchmark_of_what_is_not_served_or_busy_is_refused(board: Any) -> None:
    made, server = board
    with pytest.raises(NotServed):
        benchmark.run(Benchmark(model="none"), made.hands, never)

    def busy(_: float) -> bool:
        with Wire(server) as wire:
            for _i in range(30):
                wire.ask(infer(SAMPLES))
        return False

    with pytest.raises(Overloaded, match="busy"):
        benchmark.run(Benchmark(model="tiny"), made.hands, busy)


def test_a_model_is_reloaded_and_answers_as_before(board: Any) -> None:
    made, server = board
    found = reload.run(Reload(model="tiny"), made.hands, never)

    assert found["version"] == "1.0.0"
    with Wire(server) as wire:
        expected = bundles.directly(MODEL, SAMPLES)
        np.testing.assert_allclose(output(wire.ask(infer(SAMPLES))), expected, atol=1e-5)
    with pytest.raises(NotServed):
        reload.run(Reload(model="none"), made.hands, never)


def test_a_model_whose_bundle_went_bad_serves_on_when_it_is_reloaded(board: Any) -> None:
    made, server = board
    artifact = made.served.folder / made.served.variant.artifact
    good = artifact.read_bytes()
    # Another file in its place: the engine holds the old one open.
    artifact.unlink()
    artifact.write_bytes(good[:-1] + b"?")
    with pytest.raises(BundleError, match="sha256"):
        reload.run(Reload(model="tiny"), made.hands, never)

    with Wire(server) as wire:
        expected = bundles.directly(MODEL, SAMPLES)
        np.testing.assert_allclose(output(wire.ask(infer(SAMPLES))), expected, atol=1e-5)
    assert [entry.state for entry in made.repository.index()] == ["READY"]
