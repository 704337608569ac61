"""A golden goes from the bytes of a picture to the final answer, and a board repeats all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgekit.bundle import Bundle
from edgekit.errors import GoldenMismatch, RecipeError
from edgekit.manifest import Pipeline, TensorSpec
from edgekit.recipe import PassSpec, Recipe
from edgekit.steps import (
    Boxes,
    Channels,
    Dtype,
    Layout,
    Normalise,
    PostStep,
    PreStep,
    Resize,
    Softmax,
    TopK,
)
from edgekit_converters import dataset, golden_pictures, metrics
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import photos, write_pictures
from edgekit_converters.metrics.boxes import read
from edgekit_converters.report import BundleReport
from edgekit_runtime.engines import ENGINES, Session
from edgekit_runtime.engines.batches import run_all
from edgekit_runtime.probe import ProbeResult, probe
from edgekit_runtime.serving.pictures import finish, prepare_inputs
from tests.converters.building import HERE, build_for, images, write_data, write_model

DIGITS = tuple(f"digit {number}" for number in range(10))
GRAY: tuple[PreStep, ...] = (
    Resize(width=8, height=8),
    Channels(order="gray"),
    Normalise(),
    Layout(to="NCHW"),
)
NAMED: tuple[PostStep, ...] = (Softmax(), TopK(k=2, labels=DIGITS, prefix="digit_"))


def write_digits(
    folder: Path, *, suffixes: Sequence[str] = (".png",), count: int = 40, labelled: bool = True
) -> Path:
    """Digits as pictures of 16 x 16 pixels; one folder for each class where they are labelled."""
    pixels, labels = images()
    for number in range(count):
        of_class = folder / f"{labels[number]}" if labelled else folder
        file = of_class / f"{number:03d}{suffixes[number % len(suffixes)]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        large = np.kron(pixels[number, 0] * 255, np.ones((2, 2))).astype(np.uint8)
        Image.fromarray(large).convert("RGB").save(file)
    return folder


def built(
    folder: Path, data: Path | None, model: Path | None = None, **recipe: Any
) -> BundleReport:
    folder.mkdir(exist_ok=True)
    given = {"preprocess": GRAY, "postprocess": NAMED, "passes": (), **recipe}
    return build_for(HERE, model or write_model(folder), folder, data=data, recipe=Recipe(**given))


def opened(report: BundleReport) -> Bundle:
    assert report.path is not None
    with Bundle.open(report.path) as packed:
        return Bundle.open(packed.unpack(report.path.with_suffix("")))


def session_of(bundle: Bundle, name: str | None = None) -> Session:
    variant = bundle.manifest.variant(name) if name else bundle.manifest.variants[0]
    engine = ENGINES.get(variant.engine)
    return engine.open(bundle.artifact(variant), options=dict(variant.options))


def probed(bundle: Bundle) -> ProbeResult:
    session = session_of(bundle)
    try:
        return probe(bundle, bundle.manifest.variants[0], session)
    finally:
        session.close()


def with_steps(bundle: Bundle, pre: tuple[PreStep, ...], post: tuple[PostStep, ...]) -> None:
    """As a board would see the bundle whose steps mean something else to it."""
    pipeline = Pipeline(pre=pre, post=post)
    bundle.manifest = msgspec.structs.replace(bundle.manifest, pipeline=pipeline)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> BundleReport:
    folder = tmp_path_factory.mktemp("golden")
    return built(folder, write_digits(folder / "data", suffixes=(".png", ".jpg", ".bmp")))


@pytest.fixture
def bundle(report: BundleReport, tmp_path: Path) -> Bundle:
    assert report.path is not None
    with Bundle.open(report.path) as packed:
        return Bundle.open(packed.unpack(tmp_path / "bundle"))


def test_a_bundle_carries_its_golden_pictures_and_what_they_come_to(bundle: Bundle) -> None:
    answers = json.loads(bundle.read("golden/answers.json"))

    entries = [picture["entry"] for picture in answers["pictures"]]
    assert [entry[:14] for entry in entries] == [f"golden/raw/{i:03d}" for i in range(4)]
    assert {entry[14:] for entry in entries} <= {".png", ".jpg"}
    assert set(entries) <= set(bundle.manifest.entries)
    (ranking,) = answers["variants"]["float"]["pictures"][0]
    assert ranking["kind"] == "ranking"
    assert len(ranking["indices"]) == 10
    assert sum(ranking["scores"]) == pytest.approx(1, abs=1e-4)


def test_a_board_repeats_golden_pictures_from_their_bytes(bundle: Bundle) -> None:
    assert probed(bundle).pictures == 4


def test_pictures_are_as_the_user_had_them(report: BundleReport, bundle: Bundle) -> None:
    assert report.path is not None
    given = {
        file.read_bytes()
        for file in (report.path.parent.parent / "data").rglob("*")
        if file.suffix in (".png", ".jpg")
    }

    kept = [bundle.read(name) for name in bundle.names() if name.startswith("golden/raw/")]

    # Those of other formats became PNG.
    assert any(data in given for data in kept)
    assert all(data.startswith((b"\x89PNG", b"\xff\xd8\xff")) for data in kept)


def test_the_same_pictures_give_the_same_digest(report: BundleReport, tmp_path: Path) -> None:
    data = write_digits(tmp_path / "again", suffixes=(".png", ".jpg", ".bmp"))

    assert built(tmp_path / "build", data).digest == report.digest


def test_a_board_that_prepares_pictures_otherwise_is_refused(bundle: Bundle) -> None:
    sharper = (Resize(width=8, height=8, resample="nearest"), *GRAY[1:3], Layout(to="NCHW"))
    darker = (*GRAY[:2], Normalise(mean=(10.0,)), GRAY[3])

    for steps in (sharper, darker):
        with_steps(bundle, steps, NAMED)
        with pytest.raises(GoldenMismatch, match=r"golden/raw/000\.\w+ is prepared otherwise"):
            probed(bundle)


def test_a_board_that_finishes_otherwise_is_refused(bundle: Bundle) -> None:
    with_steps(bundle, GRAY, (TopK(k=2, labels=DIGITS, prefix="digit_"),))

    with pytest.raises(
        GoldenMismatch, match=r"variant float answers golden/raw/000\.\w+ otherwise"
    ):
        probed(bundle)


def test_an_answer_of_another_class_is_named(bundle: Bundle) -> None:
    file = bundle.path / "golden/answers.json"
    answers = json.loads(file.read_bytes())
    ranking = answers["variants"]["float"]["pictures"][2][0]
    best = ranking["indices"][0]
    ranking["indices"] = ranking["indices"][::-1]
    file.write_text(json.dumps(answers))

    with pytest.raises(GoldenMismatch, match=rf"golden/raw/002.*class {best} has 0\."):
        probed(bundle)


def test_a_picture_that_is_damaged_is_named(bundle: Bundle) -> None:
    entry = next(name for name in bundle.names() if name.startswith("golden/raw/001"))
    (bundle.path / entry).write_bytes(b"no picture")

    with pytest.raises(GoldenMismatch, match=f"{entry} is not a picture"):
        probed(bundle)


def test_a_quantised_variant_has_answers_and_room_of_its_own(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data", count=100)
    report = built(tmp_path, data, passes=(PassSpec(name="static-int8"),))

    bundle = opened(report)
    answers = json.loads(bundle.read("golden/answers.json"))["variants"]
    assert set(answers) == {"int8", "float"}
    assert answers["int8"]["score_atol"] > answers["float"]["score_atol"]
    assert answers["int8"]["pictures"] != answers["float"]["pictures"]
    assert probed(bundle).pictures == 4


def test_data_of_prepared_floats_has_no_pictures(tmp_path: Path) -> None:
    bundle = opened(built(tmp_path, write_data(tmp_path)))

    assert not [name for name in bundle.names() if name.startswith("golden/raw/")]
    assert "golden/answers.json" not in bundle.names()
    assert probed(bundle).pictures is None


def test_pixels_given_as_an_array_become_one_picture(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    pixels = np.random.default_rng(3).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(data, image=pixels)
    steps = {"preprocess": (Channels(order="bgr"), Dtype(to="UINT8"))}

    bundle = opened(built(tmp_path, data, brightness(tmp_path), **steps, postprocess=(TopK(k=1),)))

    (kept,) = [name for name in bundle.names() if name.startswith("golden/raw/")]
    assert kept == "golden/raw/000.png"
    assert probed(bundle).pictures == 1


def test_a_folder_of_pictures_feeds_a_model_of_uint8(tmp_path: Path) -> None:
    steps = {"preprocess": (Resize(width=8, height=8), Dtype(to="UINT8"))}

    bundle = opened(
        built(
            tmp_path, write_digits(tmp_path / "data", labelled=False), brightness(tmp_path),
            **steps, postprocess=(TopK(k=1),),
        )
    )  # fmt: skip

    assert probed(bundle).pictures == 4


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"preprocess": GRAY[:3]}, r"gives FP32 \[8, 8, 1\]"),
        ({"postprocess": (TopK(k=2),)}, "gives 'scores', which the model"),
        ({"postprocess": (TopK(k=2, labels=("a",), prefix="p_"),)}, "1 labels.*10 classes"),
        ({"postprocess": (Boxes(family="rows", output="boxes"),)}, "no output 'boxes'"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused_before_anything_is_built(
    recipe: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=why):
        built(tmp_path, write_data(tmp_path), **recipe)


def test_a_detector_is_judged_by_the_boxes_that_its_step_reads() -> None:
    step = Boxes(
        family="decoded", output="where", scores="what", corners="yxyx", activation="sigmoid"
    )
    corners = np.array([[[0, 10, 20, 30], [40, 40, 60, 80]]], np.float32)
    outputs = {"where": corners, "what": np.array([[[3.0, -3], [-3, 2]]], np.float32)}

    name, measure, view = metrics.choose(None, outputs, None, (step,))
    (found,) = read(view, outputs)

    assert name == "box_agreement"
    assert found.corners.tolist() == [[10, 0, 30, 20], [40, 40, 80, 60]]
    assert found.classes.tolist() == [0, 1]
    assert metrics.choose("map", outputs, None, (step,))[2] == view
    assert metrics.choose("mse", outputs, None, (step,))[2].kind == "values"
    assert measure.kinds == ("boxes",)


def test_golden_pictures_beyond_the_limit_are_left_out(tmp_path: Path) -> None:
    inputs = (TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8)),)
    data = write_digits(tmp_path / "data", count=5)
    samples = dataset.load(data, inputs, steps=GRAY, scratch=tmp_path)
    sizes = [file.stat().st_size for file in samples.files]

    found = golden_pictures.find(samples, inputs, GRAY, most_bytes=sum(sizes[:3]))

    assert [raw.picture.sample for raw in found] == [0, 1, 2]


@pytest.mark.slow
def test_a_jpeg_that_is_sent_gets_the_label_that_the_build_saw(tmp_path: Path) -> None:
    model = tmp_path / "lite0.onnx"
    write_lite0(model)
    data = tmp_path / "photos"
    data.mkdir()
    write_pictures(data)
    steps: tuple[PreStep, ...] = (
        Resize(width=224, height=224),
        Normalise(mean=(127.0,), std=(128.0,)),
        Layout(to="NCHW"),
    )

    report = built(tmp_path, data, model, preprocess=steps, postprocess=(Softmax(), TopK(k=5)))

    bundle = opened(report)
    session = session_of(bundle)
    sent = [served(bundle, session, photo.path) for photo in photos()]
    samples = dataset.load(data, session.inputs, steps=steps, scratch=tmp_path)
    evaluated = run_all(session, samples.arrays, max_batch=1)["logits"].argmax(axis=1)
    assert probed(bundle).pictures == 4
    assert sent == evaluated.tolist()
    assert sum(label == photo.label for label, photo in zip(sent, photos(), strict=True)) >= 16


def served(bundle: Bundle, session: Session, file: Path) -> int:
    """The class that a client gets for a file that it sends."""
    picture: NDArray[Any] = np.empty(1, object)
    picture[0] = file.read_bytes()
    prepared = prepare_inputs(bundle.manifest, {"input": picture})
    answers = finish(bundle.manifest, session.run(prepared.tensors), prepared.frames)
    return int(answers["indices"][0, 0])


def brightness(folder: Path) -> Path:
    """A model of uint8 `image` [N, 8, 8, 3]; `which` [N, 3] is the mean of each colour."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["which"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "brightness",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])],
            [helper.make_tensor_value_info("which", TensorProto.FLOAT, ["N", 3])],
            [numpy_helper.from_array(np.full(3, 1 / 255, np.float32), "scale")],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )
    onnx.checker.check_model(model)
    return write_model(folder, model, "brightness")
