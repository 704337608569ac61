"""A request may carry pictures, and get what the pipeline makes of the model's answers."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.errors import ManifestError, Overloaded, RequestError, ServingError
from edgekit.manifest import Golden, Manifest, Model, Needs, Pipeline, TensorSpec, Variant
from edgekit.profile import Placement
from edgekit.steps import (
    Boxes,
    Dtype,
    Layout,
    Normalise,
    PostStep,
    PreStep,
    Resize,
    Softmax,
    TopK,
)
from edgekit_runtime import pipeline
from edgekit_runtime.serving import pictures
from edgekit_runtime.serving.preparation import Preparation
from tests import bundles

PRE: tuple[PreStep, ...] = (Resize(width=8, height=8), Normalise(), Layout(to="NCHW"))
POST: tuple[PostStep, ...] = (Softmax(), TopK(k=2, labels=("a", "b", "c")))
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)  # type: ignore[arg-type]


IMAGE, LOGITS = spec("image", "FP32", -1, 3, 8, 8), spec("logits", "FP32", -1, 3)


def manifest(
    pre: tuple[PreStep, ...] = PRE,
    post: tuple[PostStep, ...] = POST,
    *,
    inputs: tuple[TensorSpec, ...] = (IMAGE,),
    outputs: tuple[TensorSpec, ...] = (LOGITS,),
) -> Manifest:
    return Manifest(
        name="net",
        version="1.0.0",
        profile=bundles.PROFILE,
        model=Model(source_sha256="0" * 64, inputs=inputs, outputs=outputs),
        pipeline=Pipeline(pre=pre, post=post),
        variants=(
            Variant(
                name="float", artifact="a", engine="onnxruntime", accelerator="cpu",
                precision="fp32", needs=Needs(memory_mb=1), placement=Placement(),
                golden=Golden(reference_atol=0.1),
            ),
        ),
    )  # fmt: skip


def encoded(*files: bytes) -> np.ndarray:
    array = np.empty(len(files), object)
    array[:] = files
    return array


def png(pixels: np.ndarray = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_model_with_a_pipeline_takes_pictures_and_gives_labels() -> None:
    found = pictures.surface(manifest())

    assert found is not None
    assert found.input == "image"
    assert found.takes == (
        spec("image", "BYTES", -1),
        spec("image", "UINT8", -1, -1, -1, 3),
        spec("image", "UINT8", -1, -1, 3),
    )
    assert [given.name for given in found.gives] == ["labels", "scores", "indices"]


def test_a_model_without_steps_has_no_surface() -> None:
    assert pictures.surface(manifest((), ())) is None


def test_steps_after_the_model_alone_give_answers_to_tensors() -> None:
    found = pictures.surface(manifest(()))

    assert found is not None
    assert found.input is None
    assert not pictures.has_pictures(found, {"image": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_form_that_the_input_has_itself_is_a_tensor() -> None:
    raw = manifest((Dtype(to="UINT8"),), inputs=(spec("image", "UINT8", -1, -1, -1, 3),))

    found = pictures.surface(raw)

    assert found is not None
    assert [taken.shape for taken in found.takes] == [(-1,), (-1, -1, 3)]
    assert not pictures.has_pictures(found, {"image": PIXELS[np.newaxis]})
    assert pictures.has_pictures(found, {"image": PIXELS})


def test_a_pipeline_that_does_not_fit_its_model_is_no_bundle() -> None:
    with pytest.raises(ManifestError, match=r"pipeline of net 1\.0\.0.*no input"):
        pictures.surface(manifest((Resize(shorter=8),)))
    with pytest.raises(ManifestError, match="no output 'boxes'"):
        pictures.surface(manifest(PRE, (Boxes(family="rows", output="boxes"),)))


def test_files_and_pixels_become_the_same_input() -> None:
    want = np.stack([pipeline.preprocess(PRE, PIXELS)] * 2)

    files = pictures.prepare_inputs(manifest(), {"image": encoded(png(), png())})
    batch = pictures.prepare_inputs(manifest(), {"image": np.stack([PIXELS, PIXELS])})
    single = pictures.prepare_inputs(manifest(), {"image": PIXELS})

    np.testing.assert_array_equal(files.tensors["image"], want)
    np.testing.assert_array_equal(batch.tensors["image"], want)
    np.testing.assert_array_equal(single.tensors["image"], want[:1])
    assert (files.frames[1].width, files.frames[1].height) == (30, 20)
    assert len(single.frames) == 1


def test_tensors_pass_and_other_inputs_are_left_alone() -> None:
    inputs = (IMAGE, spec("scale", "FP32", -1, 1))
    arrays = {"image": np.zeros((2, 3, 8, 8), np.float32), "scale": np.ones((2, 1), np.float32)}

    raw = pictures.prepare_inputs(manifest(inputs=inputs), arrays)
    sent = pictures.prepare_inputs(
        manifest(inputs=inputs), {**arrays, "image": encoded(png(), png())}
    )

    assert raw.tensors["image"] is arrays["image"]
    assert raw.frames == (pipeline.whole(8, 8),) * 2
    assert sent.tensors["scale"] is arrays["scale"]


def test_a_model_without_a_batch_axis_takes_one_picture() -> None:
    alone = manifest(inputs=(spec("image", "FP32", 3, 8, 8),))

    found = pictures.surface(alone)

    assert found is not None
    assert found.takes[0].shape == (1,)
    prepared = pictures.prepare_inputs(alone, {"image": encoded(png())})
    assert prepared.tensors["image"].shape == (3, 8, 8)


@pytest.mark.parametrize("bad", [b"", b"no picture", png()[:100]])
def test_a_damaged_picture_is_named_by_input_and_index(bad: bytes) -> None:
    with pytest.raises(RequestError, match=r"input 'image': picture 1 is not a picture"):
        pictures.prepare_inputs(manifest(), {"image": encoded(png(), bad)})


def test_formats_whose_readers_are_not_for_strangers_are_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "TIFF")

    with pytest.raises(RequestError, match="picture 0 is not a picture that can be read"):
        pictures.prepare_inputs(manifest(), {"image": encoded(file.getvalue())})


def test_pictures_of_one_request_share_a_limit_of_pixels() -> None:
    file = io.BytesIO()
    Image.new("1", (6000, 6000)).save(file, "PNG")

    with pytest.raises(RequestError, match="picture 1 has 6000 x 6000 pixels, at most 31108864"):
        pictures.prepare_inputs(manifest(), {"image": encoded(*[file.getvalue()] * 2)})


def test_what_pictures_become_is_bounded() -> None:
    wide = manifest((Normalise(),), inputs=(spec("image", "FP32", -1, -1, -1, 3),))
    large = np.zeros((1200, 2000, 3), np.uint8)

    with pytest.raises(RequestError, match="picture 2: the pictures of the request become more"):
        pictures.prepare_inputs(wide, {"image": np.stack([large] * 3)})


def test_pictures_that_become_inputs_of_two_sizes_are_refused() -> None:
    wide = manifest((Normalise(),), inputs=(spec("image", "FP32", -1, -1, -1, 3),))

    with pytest.raises(RequestError, match=r"picture 1 becomes \[5, 5, 3\], those before"):
        pictures.prepare_inputs(wide, {"image": encoded(png(), png(PIXELS[:5, :5]))})


def test_a_picture_that_a_pipeline_leaves_at_another_size_is_refused() -> None:
    square = manifest((Resize(shorter=8), *PRE[1:]))

    with pytest.raises(RequestError, match=r"becomes \[3, 8, 12\], the model takes \[3, 8, 8\]"):
        pictures.prepare_inputs(square, {"image": PIXELS})


def test_answers_of_the_model_become_answers_of_the_pipeline() -> None:
    logits = np.log(np.array([[1.0, 7.0, 2.0], [5.0, 1.0, 4.0]], np.float32))

    found = pictures.finish(manifest(), {"logits": logits}, (pipeline.whole(8, 8),) * 2)

    assert found["labels"].tolist() == [[b"b", b"c"], [b"a", b"c"]]
    np.testing.assert_allclose(found["scores"], [[0.7, 0.2], [0.5, 0.4]], rtol=1e-6)
    assert set(found) == {"labels", "scores", "indices"}


def test_boxes_are_in_pixels_of_the_picture_that_was_sent() -> None:
    detector = manifest(PRE, (Boxes(family="rows"),), outputs=(spec("rows", "FP32", -1, -1, 6),))
    rows = np.array([[[0, 0, 4, 8, 0.9, 1]]], np.float32)

    sent = pictures.prepare_inputs(detector, {"image": encoded(png())})
    raw = pictures.frames_of(detector, {"image": np.zeros((1, 3, 8, 8), np.float32)})

    found = pictures.finish(detector, {"rows": rows}, sent.frames)["boxes"]
    np.testing.assert_allclose(found, [[[0, 0, 15, 20]]], rtol=1e-6)
    assert pictures.finish(detector, {"rows": rows}, raw)["boxes"].tolist() == [[[0, 0, 4, 8]]]


def run(scenario: Callable[[Preparation], Any], **options: Any) -> Any:
    """A scenario with a pool, on a loop."""

    async def main() -> Any:
        pool = Preparation(asyncio.get_running_loop(), **options)
        try:
            return await scenario(pool)
        finally:
            pool.close()

    return asyncio.run(main())


def test_work_is_done_on_threads_and_handed_back_on_the_loop_once() -> None:
    async def scenario(pool: Preparation) -> tuple[list[Any], set[str]]:
        outcomes: list[Any] = []
        names: set[str] = set()
        here = threading.current_thread()

        def done(outcome: Any) -> None:
            assert threading.current_thread() is here
            outcomes.append(outcome)

        def work(number: int) -> int:
            names.add(threading.current_thread().name)
            return 10 // number

        for number in (5, 0, 2):
            pool.submit(lambda number=number: work(number), done)  # type: ignore[misc]
        while pool.depth:
            await asyncio.sleep(0.001)
        return outcomes, names

    outcomes, names = run(scenario)

    kinds = [type(outcome) for outcome in outcomes]
    assert sorted(value for value in outcomes if isinstance(value, int)) == [2, 5]
    assert kinds.count(ZeroDivisionError) == 1
    assert names <= {"pictures 0", "pictures 1"}


def test_too_much_work_is_turned_away_unless_the_engine_has_run_for_it() -> None:
    async def scenario(pool: Preparation) -> int:
        gate = threading.Event()
        outcomes: list[Any] = []
        for _ in range(3):
            pool.submit(gate.wait, outcomes.append)
        with pytest.raises(Overloaded, match="3 requests with pictures wait"):
            pool.submit(gate.wait, outcomes.append)
        pool.submit(gate.wait, outcomes.append, admitted=True)
        gate.set()
        while pool.depth:
            await asyncio.sleep(0.001)
        return len(outcomes)

    assert run(scenario, threads=1, limit=3) == 4


def test_a_pool_that_is_closed_has_done_its_work_and_takes_no_more() -> None:
    async def scenario(pool: Preparation) -> list[Any]:
        outcomes: list[Any] = []
        for number in range(5):
            pool.submit(lambda number=number: number, outcomes.append)  # type: ignore[misc]
        pool.close()
        with pytest.raises(ServingError, match="closing"):
            pool.submit(lambda: 0, outcomes.append)
        await asyncio.sleep(0)
        return outcomes

    assert sorted(run(scenario)) == [0, 1, 2, 3, 4]
