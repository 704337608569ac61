"""A metric of the user's own judges as they wrote it, and its faults are told as theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import RecipeError
from edgekit_converters import metrics
from tests.converters.scoring_cases import figures, scored

SOURCE = """
import numpy as np

import helper_of_judges

def positive(outputs, labels):
    return (outputs["y"] > 0).mean(axis=1)

def matches(outputs, labels):
    return outputs["y"].argmax(axis=1) == labels

def raises(outputs, labels):
    raise KeyError("scores")

def one_number(outputs, labels):
    return 0.5

def not_a_number(outputs, labels):
    return np.array([1.0, np.nan])

def texts(outputs, labels):
    return np.array(["a", "b"])

NUMBER = 3
"""
BEFORE = {"y": np.array([[1.0, 1, 1, 1], [0, 1, 0, 1]])}
AFTER = {"y": np.array([[1.0, -1, 1, 1], [0, -1, 0, 1]])}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "judges.py").write_text(SOURCE)
    (tmp_path / "helper_of_judges.py").write_text("")
    (tmp_path / "broken_judges.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    assert sys.path == path
    for name in ("judges", "helper_of_judges", "broken_judges"):
        sys.modules.pop(name, None)


def test_a_function_in_the_current_folder_scores_both_models() -> None:
    assert figures("judges:positive", BEFORE, AFTER) == (0.75, 0.5)
    assert scored("judges:positive", BEFORE, AFTER).reference == "function"


def test_a_function_is_given_the_labels() -> None:
    labels = np.array([0, 3])

    assert figures("judges:matches", BEFORE, AFTER, labels) == (0.5, 1)
    assert scored("judges:matches", BEFORE, AFTER, labels).reference == "labels"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("judges:raises", "judges:raises failed on 2 samples: KeyError: 'scores'"),
        ("judges:one_number", r"gave float64 \[\], expected one score a sample: \[2\]"),
        ("judges:not_a_number", "gave nan for sample 1"),
        ("judges:texts", "expected one score a sample"),
        ("judges:missing", "judges:missing cannot be imported: AttributeError"),
        ("judges:NUMBER", "judges:NUMBER is not a function"),
        ("nowhere_to_be_found:f", "cannot be imported: ModuleNotFoundError"),
        ("broken_judges:f", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_what_a_function_does_wrong_names_it(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        scored(name, BEFORE, AFTER)


def test_the_identity_of_a_function_changes_with_its_file(tmp_path: Path) -> None:
    before = metrics.identity("judges:positive")
    with (tmp_path / "judges.py").open("a") as file:
        file.write("# another\n")

    assert metrics.identity("judges:positive") != before
    assert metrics.identity("top1") == "top1"
    assert metrics.identity(None) == ""


def test_without_labels_a_function_judges_numbers_not_classes() -> None:
    assert metrics.choose("judges:positive", BEFORE, None)[2].kind == "values"
    assert metrics.choose("judges:positive", BEFORE, np.array([0, 1]))[2].kind == "classes"
