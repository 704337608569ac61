"""Data, recipes and folders that are wrong: a refusal that names the field, nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.errors import DataError, EdgekitError, RecipeError
from edgekit.recipe import Budget, PassSpec, Recipe, Search, Split
from edgekit_converters.cache import Cache
from tests.converters.building import HERE, STATIC, build_for, images, write_data, write_model
from tests.converters.test_build_commands import Run, edgekit

__all__ = ["edgekit"]

PICTURES, LABELS = images()
Change = Callable[[], dict[str, NDArray[Any] | None]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def pictures(value: float, at: int = 37) -> dict[str, NDArray[Any] | None]:
    changed = PICTURES.copy()
    changed[at, 0, 3, 3] = value
    return {"image": changed}


def label(value: int) -> dict[str, NDArray[Any] | None]:
    changed = LABELS.copy()
    changed[5] = value
    return {"labels": changed}


def first(count: int) -> dict[str, NDArray[Any] | None]:
    return {"image": PICTURES[:count], "labels": LABELS[:count]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: pictures(np.nan), "'image' holds NaN in sample 37"),
        (lambda: pictures(np.inf), "'image' holds an infinite value in sample 37"),
        (lambda: label(10), "labels hold 10, the model has classes 0 to 9"),
        (lambda: label(-1), "labels hold -1, the model has classes 0 to 9"),
        (lambda: {"labels": LABELS.astype(np.float32)}, r"labels float32 \[n\] fit no output"),
        (lambda: {"labels": LABELS[:, np.newaxis]}, r"labels int64 \[n, 1\] fit no output"),
        (lambda: {"labels": LABELS.astype(str)}, "labels are <U21, expected numbers"),
        (lambda: {"labels": LABELS[1:]}, r"labels has shape \[159\], but there are 160 samples"),
        (lambda: {"labels": np.full(160, np.nan)}, "labels holds NaN in sample 0"),
        (lambda: {"groups": np.zeros(160, int)}, "160 samples in 1 groups cannot be split"),
        (lambda: {"groups": np.minimum(range(160), 3)}, "4 groups are too few"),
        (lambda: {"groups": np.ones(160)}, "groups is float64"),
        (lambda: first(0), "0 samples in 0 groups cannot be split"),
        (lambda: first(5), "5 samples in 5 groups cannot be split"),
        (lambda: {"image": None}, "has no array for input 'image'"),
        (lambda: {"image": None, "picture": PICTURES}, "'picture' is no input of the model"),
        (lambda: {"mask": PICTURES}, "'mask' is no input of the model"),
        (lambda: {"image": PICTURES.astype(float)}, "'image' is float64, the model takes FP32"),
        (lambda: {"image": PICTURES[:, 0]}, r"\[160, 8, 8\], which does not fit \[-1, 1, 8, 8\]"),
    ],
)
def test_samples_that_are_wrong_are_refused_by_name(
    change: Change, message: str, model: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path, **change())

    with pytest.raises(DataError, match=message):
        build_for(HERE, model, tmp_path, data=data)

    assert not list(tmp_path.rglob("*.edge"))


@pytest.mark.parametrize("metric", ["cosine", "agreement"])
def test_labels_that_fit_nothing_are_left_aside_where_the_recipe_says_so(
    metric: str, model: Path, tmp_path: Path
) -> None:
    data = write_data(tmp_path, labels=LABELS[:, np.newaxis])
    recipe = Recipe(passes=(), metric=metric)

    found = build_for(HERE, model, tmp_path, data=data, recipe=recipe)

    assert found.variants[0].metric is not None
    assert found.variants[0].metric.name == metric


def test_a_handful_of_samples_proves_nothing_and_float_ships(model: Path, tmp_path: Path) -> None:
    found = build_for(HERE, model, tmp_path, data=write_data(tmp_path, **first(12)))

    assert found.gate.outcome == "not_enough_data"
    assert found.variants[0].name == "float"
    assert any("5 samples evaluate, fewer than 20" in note for note in found.notes)


# Recipes.

METRICS = """
import numpy as np

def right(outputs, labels):
    return (outputs["scores"].argmax(axis=1) == labels).astype(float)

def failing(outputs, labels):
    return outputs["answers"]

def flat(outputs, labels):
    return 1.0

def unknown(outputs, labels):
    return np.full(len(labels), np.nan)
"""


def passes(*names: str, **options: Any) -> Recipe:
    return Recipe(passes=tuple(PassSpec(name=name, options=options) for name in names))


@pytest.mark.parametrize(
    ("recipe", "message", "hint"),
    [
        (passes("static-int9"), "no pass called 'static-int9'", "static-int8"),
        (passes("static-int8", calibrater="mse"), "unknown field `calibrater`", "calibrator"),
        (passes("static-int8", calibrator="magic"), "Invalid enum value 'magic'", "calibrator"),
        (Recipe(metric="topp1"), "no metric called 'topp1'", "top1"),
        (Recipe(metric="map50"), r"map50 needs boxes .* 'scores' \[4, 10\]", "cosine"),
        (Recipe(metric="nowhere:score"), "nowhere:score cannot be imported", "current folder"),
        (Recipe(metric="own_metrics:failing"), "own_metrics:failing failed .* 'answers'", None),
        (Recipe(metric="own_metrics:flat"), r"gave float64 \[\], expected one score", None),
        (Recipe(metric="own_metrics:unknown"), "gave nan for sample 0", None),
        (Recipe(metric="own_metrics:missing"), "no attribute 'missing'", None),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_by_the_name_it_uses(
    recipe: Recipe,
    message: str,
    hint: str | None,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_metrics(tmp_path, monkeypatch)

    with pytest.raises(EdgekitError, match=message) as refused:
        build_for(HERE, model, tmp_path, data=write_data(tmp_path), recipe=recipe)

    assert refused.value.exit_code == RecipeError.exit_code
    assert hint is None or hint in (refused.value.hint or "")


def test_a_metric_of_the_users_own_judges(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_metrics(tmp_path, monkeypatch)
    recipe = Recipe(passes=STATIC.passes, metric="own_metrics:right")

    found = build_for(HERE, model, tmp_path, data=write_data(tmp_path), recipe=recipe)

    metric = found.variants[0].metric
    assert metric is not None
    assert (metric.name, found.gate.outcome) == ("own_metrics:right", "passed")


def own_metrics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_metrics.py").write_text(METRICS)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)


def test_a_recipe_without_passes_builds_float(model: Path, tmp_path: Path) -> None:
    found = build_for(HERE, model, tmp_path, data=write_data(tmp_path), recipe=passes())

    assert [variant.name for variant in found.variants] == ["float"]
    assert (found.tried, found.rejected) == ((), ())
    assert found.gate.reasons == ("float only: nothing else was asked for",)


def test_a_search_of_one_trial_makes_one(model: Path, tmp_path: Path) -> None:
    recipe = Recipe(search=Search(trials=1))

    found = build_for(HERE, model, tmp_path, data=write_data(tmp_path), recipe=recipe)

    assert len(found.tried) == 1
    assert any("ended after 1 trial" in note for note in found.notes)


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(max_size_mb=0.001), "float on onnxruntime: 0.043 MB, at most 0.001 MB"),
        (Budget(max_latency_ms=0.5), "float on onnxruntime: 10.0 ms, at most 0.5 ms"),
        (Budget(max_memory_mb=0.1), "MB of memory, at most 0.1 MB of memory"),
    ],
)
def test_a_limit_that_nothing_meets_is_refused_with_the_figure(
    budget: Budget, reason: str, model: Path, tmp_path: Path
) -> None:
    recipe = Recipe(passes=STATIC.passes, budget=budget)

    found = build_for(HERE, model, tmp_path, data=write_data(tmp_path), recipe=recipe)

    assert (found.path, found.gate.outcome) == (None, "refused")
    assert reason in found.gate.reasons[0]
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("split", [Split(calibration=0.0), Split(calibration=1.0)])
def test_shares_at_their_ends_leave_something_to_every_part(
    split: Split, model: Path, tmp_path: Path
) -> None:
    recipe = Recipe(passes=STATIC.passes, split=split)

    found = build_for(HERE, model, tmp_path, data=write_data(tmp_path), recipe=recipe)

    assert found.data.calibration >= 1
    assert found.data.evaluation >= 1


# Folders and the command line.


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("licences: {model: My Own}", "licences.model: 'My Own' is not an SPDX licence"),
        ("search: {trials: 0}", "`$.search.trials`"),
        ("budget: {min_agreement: 1.5}", "`$.budget.min_agreement`"),
        ("constants: {rate: 3}", "no input 'rate'"),
        ("[1, 2", "is not valid YAML: line"),
        ("just words", "Expected `object`"),
    ],
)
def test_a_recipe_that_is_not_valid_is_a_usage_error(
    recipe: str, message: str, edgekit: Run, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)

    run = edgekit(
        *("build", model, "--profile", HERE, "--recipe", path),
        *("--out", tmp_path / "out", "--json"),
    )

    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.rglob("*.edge"))


def test_an_output_folder_that_cannot_be_written_is_found_out_before_the_search(
    edgekit: Run, model: Path
) -> None:
    run = edgekit("build", model, "--profile", HERE, "--out", "/proc/self")

    assert run.returncode == 2
    assert "/proc/self cannot be made or written" in run.stderr
    assert "--out" in run.stderr


def test_a_cache_that_cannot_be_written_is_said_once_and_the_build_goes_on(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")

    found = build_for(
        *(HERE, model, tmp_path),
        data=write_data(tmp_path),
        cache=Cache(tmp_path / "file" / "cache"),
    )

    assert found.path is not None
    assert caplog.text.count("nothing is kept") == 1
