"""One scheme at a time: made, run, timed, and remembered by everything that it depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit import profile
from edgekit.errors import ToolChainMissing
from edgekit.profile import DeviceProfile
from edgekit.recipe import Recipe
from edgekit_converters import source
from edgekit_converters.cache import Cache
from edgekit_converters.evaluate import noise_of
from edgekit_converters.passes import PASSES, Scheme, Step
from edgekit_converters.targets import TARGETS, Job, Product, Target
from edgekit_converters.targets.onnxruntime_cpu import OnnxRuntimeCpu
from edgekit_converters.trials import Trials
from edgekit_converters.workshop import Workshop
from tests.converters.building import HERE, Stopwatch, write_data, write_model
from tests.converters.chains import needs

STATIC = PASSES.get("static-int8")
INT8 = Scheme(steps=(STATIC.step({}),))
WITHOUT_HEAD = Scheme(steps=(STATIC.step({"keep_float": ("matmul",)}),))
TABLES = Scheme(steps=(PASSES.get("dynamic-int8").step({"operators": ("Gather",)}),))

Open = Callable[..., Trials]


class WithTool(OnnxRuntimeCpu):
    """Needs a tool, which is a file, to compile artefacts."""

    def __init__(self, tool: Path) -> None:
        self._tool = tool

    def compile(self, model: Path, step: Step | None, job: Job) -> Product:
        if not self._tool.exists():
            raise ToolChainMissing("the compiler is not on PATH", hint="install it")
        return super().compile(model, step, job)


class Counting(Stopwatch):
    """Counts how often it was asked."""

    asked = 0

    def measure(self, *args, **options):  # type: ignore[no-untyped-def]
        self.asked += 1
        return super().measure(*args, **options)


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Trials of the digits on this machine; each call is another build with the same cache."""
    model, data = write_model(tmp_path), write_data(tmp_path)
    builds = 0

    def open_(
        *,
        recipe: Recipe | None = None,
        target: Target | None = None,
        watch: Stopwatch,
        engine: str = "onnxruntime",
    ) -> Trials:
        nonlocal builds
        builds += 1
        scratch = tmp_path / f"scratch{builds}"
        scratch.mkdir()
        workshop = Workshop(
            source.read(model),
            recipe=recipe or Recipe(),
            shapes={},
            data=data,
            scratch=scratch,
            cache=Cache(tmp_path / "cache"),
        )
        board: DeviceProfile = profile.find(HERE)
        spec = next(spec for spec in board.engines if spec.name == engine)
        return Trials(workshop, board, spec, target=target or OnnxRuntimeCpu(), measurer=watch)

    return open_


def test_what_was_found_is_found_again_without_making_or_timing_anything(opened: Open) -> None:
    first, again = Counting(), Counting()
    before = opened(watch=first)
    found, proof = before.record(INT8), before.prove(INT8)[0]
    timings = before.time([INT8])

    after = opened(watch=again)

    assert after.record(INT8) == found
    assert after.prove(INT8)[0] == proof
    assert after.time([INT8]) == timings
    assert first.asked == 4
    assert again.asked == 0


def test_an_artefact_that_was_trimmed_meanwhile_is_made_again_to_the_byte(
    opened: Open, tmp_path: Path
) -> None:
    watch = Stopwatch()
    before = opened(watch=watch)
    before.record(INT8)
    content = before.product(INT8).path.read_bytes()

    after = opened(watch=watch)
    after.record(INT8)
    Cache(tmp_path / "cache").trim(max_bytes=0)

    assert after.product(INT8).path.read_bytes() == content


def test_a_probe_is_not_timed_and_leaves_no_file(opened: Open, tmp_path: Path) -> None:
    watch = Counting()
    trials = opened(watch=watch)

    found = trials.record(WITHOUT_HEAD, probe=True)

    assert found.failure is None
    assert found.noise is not None
    assert found.timing is None
    assert watch.asked == 0
    assert list((tmp_path / "scratch1").glob("*.onnx")) == [tmp_path / "scratch1" / "source.onnx"]


def test_a_probe_that_turns_out_worth_shipping_is_timed(opened: Open) -> None:
    trials = opened(watch=Stopwatch())
    probed = trials.record(WITHOUT_HEAD, probe=True)

    made = trials.record(WITHOUT_HEAD)

    assert made.selection == probed.selection
    assert made.timing is not None
    assert trials.product(WITHOUT_HEAD).path.is_file()


@needs("onnx2tf", "litert-quantizer")
def test_a_probe_leaves_alone_what_others_share(opened: Open) -> None:
    litert = TARGETS.get("litert")
    mixed = Scheme(steps=(litert.step({"keep_float": ("matmul",)}),))
    trials = opened(watch=Stopwatch(), target=litert, engine="litert")

    probed = trials.record(mixed, probe=True)
    made = trials.record(mixed)

    assert probed.failure is None
    assert made.failure is None
    assert trials.product(mixed).path.is_file()


def test_what_a_pass_refuses_is_a_failure_with_its_reason_also_from_the_cache(
    opened: Open,
) -> None:
    fresh = opened(watch=Stopwatch()).record(TABLES)
    kept = opened(watch=Stopwatch()).record(TABLES)

    assert fresh.failure is not None
    assert "Gather" in fresh.failure
    assert kept == fresh


def test_a_tool_that_was_missing_is_asked_again_by_the_next_build(
    opened: Open, tmp_path: Path
) -> None:
    target = WithTool(tmp_path / "compiler")

    before = opened(watch=Stopwatch(), target=target).record(Scheme())
    (tmp_path / "compiler").touch()
    after = opened(watch=Stopwatch(), target=target).record(Scheme())

    assert before.failure == "the compiler is not on PATH (install it)"
    assert after.failure is None


def test_another_metric_has_findings_of_its_own(opened: Open) -> None:
    watch = Stopwatch()
    top1 = opened(watch=watch).record(INT8).selection
    mse = opened(watch=watch, recipe=Recipe(metric="cosine")).record(INT8).selection

    assert top1 is not None
    assert mse is not None
    assert (top1.metric.name, mse.metric.name) == ("top1", "cosine")


def test_noise_is_the_power_of_the_error_over_that_of_the_answers() -> None:
    wanted = {"scores": np.array([[3.0, 4.0]], np.float32), "index": np.array([1])}
    got = {"scores": np.array([[3.0, 4.5]], np.float32), "index": np.array([0])}

    assert noise_of(wanted, got) == pytest.approx(0.01)
    assert noise_of(wanted, wanted) == 0


def test_the_noise_of_answers_that_are_no_numbers_is_not_known() -> None:
    wanted = {"scores": np.array([[1.0]], np.float32)}

    assert noise_of(wanted, {"scores": np.array([[np.nan]], np.float32)}) is None
    assert noise_of(wanted, {"scores": np.array([[np.inf]], np.float32)}) is None
