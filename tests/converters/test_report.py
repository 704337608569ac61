"""A report draws what was measured and lets no name of a file or class become markup."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_converters import plots
from edgekit_converters.plots import Axis, Point
from edgekit_converters.thumbnails import as_pixels
from tests.converters.building import HERE, build_for, write_data, write_model

VALUES = st.floats(-1e6, 1e6)
POINTS = st.lists(
    st.builds(
        lambda x, y, label: Point(x=x, y=y, label=label, style="ship"), VALUES, VALUES, st.text()
    ),
    min_size=1,
    max_size=12,
)


@given(POINTS)
def test_nothing_beats_a_point_of_the_front(points: list[Point]) -> None:
    front = plots.pareto(points)

    assert front
    for best in front:
        assert not any(p.x < best.x and p.y > best.y for p in points)


@given(low=VALUES, span=st.floats(1e-3, 1e6))
def test_ticks_lie_within_their_axis(low: float, span: float) -> None:
    axis = Axis(label="", low=low, high=low + span)

    ticks = axis.ticks()

    assert 1 <= len(ticks) <= 12
    air = max(span, abs(low)) * 1e-6
    assert all(low - air <= tick <= low + span + air for tick in ticks)


@given(label=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=30))
def test_a_drawing_is_well_formed_whatever_its_labels_say(label: str) -> None:
    point = Point(x=1, y=2, label=label, style="ship", low=1.5, high=2.5)
    axis = Axis(label=label, low=0, high=3)

    for drawing in (
        plots.scatter([point, point], x=axis, y=axis, title=label, front=True),
        plots.cloud([(0.1, 0.2)], x=axis, y=axis, title=label),
        plots.strips([(label, [1.0, 2.0], "ship")], label=label, title=label),
        plots.histogram([0, 3, 1], high=2.0, label=label, title=label),
        plots.bars([(label, 0.5, 1.0)], names=("a", "b"), title=label),
    ):
        assert ET.fromstring(drawing).tag == "svg"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 16, 12), (16, 12, 3)),
        ((1, 16, 12), (16, 12)),
        ((16, 12, 3), (16, 12, 3)),
        ((1, 3, 16, 12), (16, 12, 3)),
        ((16, 12), (16, 12)),
        ((5,), None),
        ((3, 4, 4), None),
        ((7, 16, 12), None),
    ],
)
def test_an_input_is_shown_where_it_has_the_shape_of_a_picture(
    shape: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    pixels = as_pixels(np.random.default_rng(0).random(shape))

    assert (None if pixels is None else pixels.shape) == expected


def test_a_name_of_a_model_file_cannot_become_markup(tmp_path: Path) -> None:
    model = write_model(tmp_path, name="<img src=x onerror=alert(1)>")

    found = build_for(HERE, model, tmp_path, data=write_data(tmp_path))

    assert found.report is not None
    assert "<img src=x" not in found.report.read_text()
