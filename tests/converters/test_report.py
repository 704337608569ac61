"""A report says what was measured, draws it, stays small, and lets no name become markup."""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ET
import zipfile
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit import recipe as recipe_
from edgekit.recipe import Budget, PassSpec, Recipe
from edgekit.signing import new_pair
from edgekit_converters import page, plots, source
from edgekit_converters.axes import Axis
from edgekit_converters.blocks import Block
from edgekit_converters.cache import Cache
from edgekit_converters.commands import build as build_command
from edgekit_converters.metrics.changes import ClassChange
from edgekit_converters.passes import KEEP, PASSES, Scheme
from edgekit_converters.passes.edits import kept_label
from edgekit_converters.report import (
    MEASUREMENTS,
    REPORT_JSON,
    BundleReport,
    Details,
    Tried,
    VariantReport,
)
from edgekit_converters.scatter import Point, pareto, scatter
from edgekit_converters.sections.again import as_yaml, recipe_of
from edgekit_converters.sections.numbers import megabytes, share
from edgekit_converters.study import studies
from edgekit_converters.thumbnails import as_pixels, as_signal
from edgekit_converters.usage import int8_share, operator_uses
from edgekit_converters.workshop import Workshop
from tests.converters.building import HERE, Stopwatch, build_for, write_data, write_model

LEAST = Recipe(passes=(PassSpec(name="static-int8", options={"calibrator": "minmax"}),))
VALUES = st.floats(-1e6, 1e6)
LABELS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=30)
POINTS = st.lists(
    st.builds(
        lambda x, y, label: Point(x=x, y=y, label=label, style="ship"), VALUES, VALUES, LABELS
    ),
    min_size=1,
    max_size=12,
)


class Checker(HTMLParser):
    """Reads a page and remembers what would fetch something, and tags that are left open."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            local = value is None or value.startswith(("#", "data:image/"))
            if name in ("src", "href", "srcset") and not local:
                self.outside.append(f"{tag} {name}={value}")
        if tag in ("script", "link", "iframe", "object"):
            self.outside.append(tag)
        if tag not in ("meta", "br", "img", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BundleReport:
    folder = tmp_path_factory.mktemp("built")
    return build_for(HERE, write_model(folder), folder, data=write_data(folder), recipe=LEAST)


@pytest.fixture(scope="module")
def details(built: BundleReport) -> Details:
    return details_of(built)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(
        source.read(write_model(folder)),
        recipe=LEAST,
        shapes={},
        data=write_data(folder),
        scratch=folder,
        cache=Cache(None),
    )


def details_of(found: BundleReport) -> Details:
    assert found.path is not None
    with zipfile.ZipFile(found.path) as bundle:
        return msgspec.json.decode(bundle.read(MEASUREMENTS), type=Details)


def text_of(html: bytes) -> str:
    """What a reader sees: markup and style gone, blanks joined."""
    plain = re.sub(r"<style>.*?</style>|<[^>]*>", " ", html.decode(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(plain))


def html_of(found: BundleReport) -> bytes:
    assert found.report is not None
    return found.report.read_bytes()


def made_up(number: int, **changes: Any) -> Tried:
    known: dict[str, Any] = {
        "scheme": f"static-int8/u8s8/minmax/way-{number}",
        "engine": "onnxruntime",
        "precision": "int8-qdq-u8s8",
        "size_bytes": 5_000_000,
        "speedup": 1.5 + number / 1000,
        "agreement": 0.9,
        "drop": 0.02,
        "noise": 0.01,
        "probe": False,
        "chosen": False,
        "pareto": False,
        "reasons": ("agreement 0.900 below 0.95",),
    }
    return Tried(**{**known, **changes})


def test_a_page_needs_nothing_from_outside_and_closes_every_tag(built: BundleReport) -> None:
    html = html_of(built).decode()

    reader = Checker()
    reader.feed(html)

    assert reader.outside == []
    assert reader.open == []
    assert "@import" not in html
    assert "url(" not in html
    assert "http" not in html


def test_every_drawing_on_a_page_is_well_formed(built: BundleReport) -> None:
    drawings = re.findall(r"<svg .*?</svg>", html_of(built).decode(), flags=re.DOTALL)

    assert len(drawings) >= 6
    for drawing in drawings:
        assert ET.fromstring(drawing).tag == "svg"


def test_a_page_says_what_the_json_says(built: BundleReport) -> None:
    shown = text_of(html_of(built))
    assert built.path is not None
    with zipfile.ZipFile(built.path) as bundle:
        saved = msgspec.json.decode(bundle.read(REPORT_JSON))

    assert saved["gate"]["outcome"] == "passed"
    assert "gate passed" in shown
    assert saved["digest"] in shown
    for variant in built.variants:
        assert variant.name in shown
        assert megabytes(variant.size_bytes) in shown
        assert share(variant.agreement) in shown
    for entry in built.tried:
        assert entry.scheme in shown.replace("/ ", "/")
    for rejected in built.rejected:
        assert rejected.reason.removeprefix("within the budget, but ") in shown


def test_a_recipe_on_the_page_makes_the_same_artefact_without_a_search(
    built: BundleReport, tmp_path: Path
) -> None:
    first = built.variants[0]
    assert first.steps
    file = tmp_path / "recipe.yaml"
    file.write_text(as_yaml(recipe_of(first, LEAST)))
    assert file.read_text() in unescape(html_of(built).decode())

    again = build_for(
        HERE,
        write_model(tmp_path),
        tmp_path,
        data=write_data(tmp_path),
        recipe=recipe_.read(file),
    )

    assert [entry.scheme for entry in again.tried] == [first.scheme]
    assert artefact_of(again, first.name) == artefact_of(built, first.name)


def test_the_command_on_a_page_can_be_pasted_and_gives_the_same_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "my models").mkdir()
    write_model(tmp_path / "my models")
    write_data(tmp_path)
    key, _ = new_pair(tmp_path / "keys")
    (tmp_path / "float.yaml").write_text("passes: []\n")
    words = ["my models/digits.onnx", "--data", "data.npz", "--recipe", "float.yaml"]
    words += ["--profile", HERE, "--input", "image=?x1x8x8", "--version", "1.2.3"]

    first = run_build(*words, "--key", str(key), "--out", "one")
    (shown,) = re.findall(r"<pre>(edgekit build .*?)</pre>", page_of(first), flags=re.DOTALL)
    typed = shlex.split(unescape(shown).replace("\\\n", " "))
    assert sorted(typed[2:]) == sorted(words)

    again = run_build(*typed[2:], "--key", str(key), "--out", "two")
    assert again["digest"] == first["digest"]


def run_build(*words: str) -> dict[str, Any]:
    run = CliRunner().invoke(build_command, [*words, "--json"])
    assert run.exit_code == 0, run.output
    (found,) = json.loads(run.stdout)["bundles"]
    return dict(found)


def page_of(found: dict[str, Any]) -> str:
    return Path(found["report"]).read_text()


def test_a_build_that_a_program_started_is_told_without_paths(built: BundleReport) -> None:
    (shown,) = re.findall(
        r"<pre>(edgekit build .*?)</pre>", html_of(built).decode(), flags=re.DOTALL
    )

    assert "--data SAMPLES" in shown
    assert f"--profile {HERE}" in shown


@given(
    st.builds(
        Recipe,
        passes=st.none() | st.just((PassSpec(name="static-int8", options={KEEP: ("a", "b: #")}),)),
        budget=st.builds(Budget, min_agreement=st.floats(0, 1), max_size_mb=st.floats(1, 9)),
        metric=st.sampled_from([None, "top1", "my_metrics:good"]),
    )
)
def test_a_recipe_reads_back_as_it_was(tmp_path_factory: Any, recipe: Recipe) -> None:
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(as_yaml(recipe))

    assert recipe_.read(file) == recipe


def test_a_figure_that_was_not_obtained_is_called_so(tmp_path: Path) -> None:
    found = build_for(
        "jetson", write_model(tmp_path), tmp_path, data=write_data(tmp_path), recipe=LEAST
    )
    assert all(variant.latency_ms is None for variant in found.variants)

    shown = text_of(html_of(found))

    assert "not measured speed-up" in shown
    assert "not measured latency" in shown
    assert "which is not the board" in shown
    assert "Accuracy against size" in shown
    assert " 0.00 ms" not in shown
    assert "0.00x" not in shown


def test_a_build_without_data_names_no_accuracy(tmp_path: Path) -> None:
    found = build_for(HERE, write_model(tmp_path), tmp_path, recipe=LEAST)

    shown = text_of(html_of(found))

    assert "not measured accuracy" in shown
    assert "Accuracy in detail" not in shown
    assert "no calibration samples" in shown


def test_a_search_that_a_time_limit_ended_is_called_truncated(
    built: BundleReport, details: Details, workshop: Workshop
) -> None:
    ended = msgspec.structs.replace(built, truncated=True)

    assert "Truncated" in text_of(page.render(ended, details, workshop=workshop))
    assert "Truncated" not in text_of(html_of(built))


def test_a_page_stays_small_with_hundreds_of_trials_and_a_thousand_classes(
    built: BundleReport, details: Details, workshop: Workshop
) -> None:
    nodes = tuple(f"/model/stage.{i}/block/conv/Conv" for i in range(3000))
    long_reason = ("x" * 5000,)
    tried = tuple(
        made_up(i, probe=i % 3 == 0, reasons=long_reason if i % 2 else ()) for i in range(1000)
    )
    variants = tuple(crowded(built.variants[0], f"variant-{i}", nodes) for i in range(7))
    found = msgspec.structs.replace(built, tried=tried, variants=(*variants, built.variants[-1]))
    first = details.variants[0]
    assert first.evaluation is not None
    change = ClassChange(label=0, samples=3, groups=2, float_right=1.0, right=0.5, drop_ci95=None)
    evaluation = msgspec.structs.replace(
        first.evaluation,
        classes=tuple(msgspec.structs.replace(change, label=i) for i in range(1000)),
        confidences=((0.5, 0.4),) * 1000,
    )
    crowds = tuple(
        msgspec.structs.replace(first, name=variant.name, evaluation=evaluation)
        for variant in variants
    )
    more = msgspec.structs.replace(details, variants=(*crowds, details.variants[-1]))

    html = page.render(found, more, workshop=workshop)

    assert len(html) < 3_000_000
    shown = text_of(html)
    assert "1000 of 1000 classes changed" in shown
    assert "626 more schemes" in shown
    assert "334 probes of single blocks" in shown
    assert "and 2700 more" in shown


def test_a_name_of_a_model_file_cannot_become_markup(tmp_path: Path) -> None:
    model = write_model(tmp_path, name="<img src=x onerror=alert(1)>")

    found = build_for(HERE, model, tmp_path, data=write_data(tmp_path), recipe=LEAST)

    assert b"<img src=x" not in html_of(found)


def test_no_text_of_a_report_can_become_markup(
    built: BundleReport, details: Details, workshop: Workshop
) -> None:
    evil = "</title></svg><script>alert('x')</script>"
    first = built.variants[0]
    found = msgspec.structs.replace(
        built,
        measured_on=evil,
        notes=(evil,),
        variants=(
            msgspec.structs.replace(
                first, precision=evil, scheme=evil, warnings=(evil,), unproven=(evil,), proven=False
            ),
            *built.variants[1:],
        ),
        tried=(made_up(0, scheme=evil, engine=evil, precision=evil, reasons=(evil,)),),
        rejected=(msgspec.structs.replace(built.rejected[0], scheme=evil, reason=evil),)
        if built.rejected
        else (),
        gate=msgspec.structs.replace(built.gate, reasons=(evil,)),
    )
    wrong = msgspec.structs.replace(details, machine=evil, tools={evil: evil})

    html = page.render(found, wrong, workshop=workshop).decode()

    assert "<script" not in html
    reader = Checker()
    reader.feed(html)
    assert reader.open == []


def test_warnings_of_the_gate_are_shown(
    built: BundleReport, details: Details, workshop: Workshop
) -> None:
    warned = msgspec.structs.replace(
        built.variants[0], warnings=("class 3 drops by 0.200 on 40 samples",)
    )
    found = msgspec.structs.replace(built, variants=(warned, *built.variants[1:]))

    shown = text_of(page.render(found, details, workshop=workshop))

    assert "class 3 drops by 0.200 on 40 samples" in shown


def test_a_probe_is_told_by_the_nodes_that_it_leaves_in_float() -> None:
    cut = [Block(nodes=("a", "b"), share=0.25), Block(nodes=("c",), share=0.75)]
    cut.append(Block(nodes=("d",), share=0.0))
    base = "static-int8/u8s8/minmax"
    tried = [
        made_up(0, scheme=base, noise=0.4),
        made_up(1, scheme=f"{base}/{kept_label(('c',))}", noise=0.1, probe=True),
        made_up(2, scheme=f"{base}/{kept_label(('c', 'd'))}", noise=0.3, probe=True),
        made_up(3, scheme=f"{base}/{kept_label(('d',))}", noise=0.2, probe=True, engine="litert"),
    ]
    step = PASSES.get("static-int8").step({KEEP: ("c", "a")})

    found = studies(
        tried, cut, engine="onnxruntime", chosen={"mixed": Scheme(steps=(step,)), "float": Scheme()}
    )

    assert [(study.scheme, study.noise, study.alone) for study in found] == [
        (base, 0.4, False),
        (base, 0.4, True),
    ]
    assert [block.noise for block in found[0].blocks] == [None, 0.1, None]
    assert [block.noise for block in found[1].blocks] == [0.3, None, None]
    assert [block.kept_by for block in found[0].blocks] == [(), ("mixed",), ()]


def test_a_page_draws_what_blocks_do(
    built: BundleReport, details: Details, workshop: Workshop
) -> None:
    cut = [Block(nodes=("conv1",), share=0.4), Block(nodes=("conv2",), share=0.6)]
    base = "static-int8/u8s8/minmax"
    tried = (
        made_up(0, scheme=base, noise=0.4),
        made_up(1, scheme=f"{base}/{kept_label(('conv1',))}", noise=0.1, probe=True),
    )
    study = studies(tried, cut, engine="onnxruntime", chosen={})
    found = msgspec.structs.replace(built, tried=tried)

    html = page.render(found, msgspec.structs.replace(details, studies=study), workshop=workshop)

    shown = text_of(html)
    assert "block 1: error removed 75 %, 40 % of MACs" in shown
    assert "block 2: error removed not measured, 60 % of MACs" in shown
    assert "1 probe of single blocks" in shown


def test_work_in_8_bits_is_told_from_work_in_float(tmp_path: Path) -> None:
    """A convolution between DequantizeLinear nodes, and a product whose weight alone is int8."""
    weights = {
        "w": np.ones((4, 2, 1, 1), np.int8),
        "v": np.ones((4, 8), np.int8),
        "s": np.float32(0.1),
        "z": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"]),
        helper.make_node("Conv", ["d", "dw"], ["c"], "conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("DequantizeLinear", ["v", "s", "z"], ["dv"]),
        helper.make_node("MatMul", ["f", "dv"], ["y"], "product"),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "mixed.onnx"
    onnx.save_model(model, path)

    uses = operator_uses(path, {"Conv": 1, "MatMul": 1, "DequantizeLinear": 3})

    found = {use.operator: use for use in uses}
    assert (found["Conv"].macs, found["Conv"].int8_macs) == (72, 72)
    assert (found["MatMul"].macs, found["MatMul"].int8_macs) == (32, 0)
    assert found["DequantizeLinear"].nodes == 3
    assert int8_share(uses) == pytest.approx(72 / 104)
    assert uses[0].operator == "Conv"


@given(POINTS, st.booleans())
def test_nothing_beats_a_point_of_the_front(points: list[Point], more_x: bool) -> None:
    front = pareto(points, more_x=more_x)

    assert front
    sign = -1 if more_x else 1
    for best in front:
        assert not any(sign * p.x < sign * best.x and p.y < best.y for p in points)


@given(low=VALUES, span=st.floats(1e-3, 1e6))
def test_ticks_lie_within_their_axis(low: float, span: float) -> None:
    axis = Axis(label="", low=low, high=low + span)

    ticks = axis.ticks()

    assert 1 <= len(ticks) <= 12
    air = max(span, abs(low)) * 1e-6
    assert all(low - air <= tick <= low + span + air for tick in ticks)


@given(worst=st.floats(0.01, 1e3))
def test_small_losses_are_spread_on_an_axis_that_falls(worst: float) -> None:
    axis = Axis(label="", low=worst, high=0.0, scale="root", unit="share")

    ticks = axis.ticks()

    assert ticks[0] == 0.0
    assert all(0 <= tick <= worst for tick in ticks)
    assert axis.share(0.0) == 1.0
    assert axis.share(worst) == 0.0
    assert axis.share(worst / 4) == pytest.approx(0.5)


@given(label=LABELS)
def test_a_drawing_is_well_formed_whatever_its_labels_say(label: str) -> None:
    point = Point(x=1, y=2, label=label, style="ship", title=label)
    axis = Axis(label=label, low=0, high=3)

    for drawing in (
        scatter([point, point], x=axis, y=axis, title=label, front=[point] * 2, limit=(1, label)),
        plots.cloud([(0.1, 0.2)], x=axis, y=axis, title=label),
        plots.strips([(label, [1.0, 2.0], "ship")], label=label, title=label),
        plots.histogram([0, 3, 1], high=2.0, label=label, title=label),
        plots.intervals([(label, 1.0, (0.5, 2.0), "ship")], x=axis, title=label, limit=1.0),
        plots.bars([(label, [(0.5, "ship", label)])], title=label),
        plots.mirrored([(label, 0.5, 1.0, "bar", label)], names=(label, label), title=label),
        plots.lines([[0.0, 1.0], [2.0, 2.0]], title=label),
    ):
        assert ET.fromstring(drawing).tag == "svg"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, "100 %"), (0.9583, "95.8 %"), (0.9999, "99.99 %"), (0.0002, "0.02 %"), (0.0, "0 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(value: float, expected: str) -> None:
    assert share(value) == expected


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


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((576,), (1, 240)), ((1, 64), (1, 64)), ((100, 6), (6, 100)), ((9, 100), None), ((8,), None)],
)
def test_an_input_is_drawn_where_it_has_the_shape_of_a_signal(
    shape: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    rows = as_signal(np.random.default_rng(0).random(shape))

    assert (None if rows is None else rows.shape) == expected


def crowded(variant: VariantReport, name: str, nodes: tuple[str, ...]) -> VariantReport:
    """A variant that leaves thousands of nodes in float."""
    step = PASSES.get("static-int8").step({KEEP: nodes})
    return msgspec.structs.replace(variant, name=name, steps=(step,))


def artefact_of(found: BundleReport, name: str) -> bytes:
    assert found.path is not None
    with zipfile.ZipFile(found.path) as bundle:
        return bundle.read(f"artifacts/{name}.onnx")


def test_the_same_findings_make_the_same_page(
    built: BundleReport, details: Details, workshop: Workshop
) -> None:
    first = page.render(built, details, workshop=workshop)

    assert page.render(built, details, workshop=workshop) == first


def test_a_slow_artefact_is_listed_with_its_reason(tmp_path: Path) -> None:
    found = build_for(
        HERE,
        write_model(tmp_path),
        tmp_path,
        data=write_data(tmp_path),
        recipe=LEAST,
        measurer=Stopwatch(speedup=0.5),
    )

    shown = text_of(html_of(found))

    assert "slower than float: 0.50x" in shown
    assert "refused" in shown
