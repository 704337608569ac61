"""Pictures: what a model with a pipeline takes and gives beside its own tensors.

A request may carry encoded pictures, or pixels of any size, in place of the input that the pipeline
prepares; its answers may be the pipeline's. Work is bounded: pictures of one request share one
limit of pixels, and what they become may be no larger than a request. What is wrong with a picture
is a `RequestError` that names the input and the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, ManifestError, RecipeError, RequestError
from edgekit.manifest import Manifest, TensorSpec
from edgekit.structs import Strict
from edgekit_runtime import pipeline
from edgekit_runtime.engines import Tensors
from edgekit_runtime.engines.tensors import DTYPES
from edgekit_runtime.pipeline import Frame

MAX_PREPARED_BYTES = 64 << 20
"""Of the samples that the pictures of one request become."""

_CHANNELS = 3
_BATCHED_AXES = 4


class Surface(Strict, frozen=True, kw_only=True):
    """What a model with a pipeline takes and gives beside its own tensors.

    Attributes:
        input: that a picture may stand for; None where there are steps after the model only.
        takes: the forms a picture may have: BYTES [n], UINT8 [n, h, w, 3] and [h, w, 3], in RGB.
            A form that the input has itself is not among them.
        gives: the pipeline's outputs.
    """

    input: str | None
    takes: tuple[TensorSpec, ...]
    gives: tuple[TensorSpec, ...]


class Prepared(NamedTuple):
    """A request's inputs as the model takes them, and where each sample's picture lies."""

    tensors: dict[str, NDArray[Any]]
    frames: tuple[Frame, ...]


def surface(manifest: Manifest) -> Surface | None:
    """What the pipeline adds to a model; None without one.

    Raises:
        ManifestError: its steps do not fit the model.
    """
    steps, model = manifest.pipeline, manifest.model
    if not steps.pre and not steps.post:
        return None
    try:
        gives = pipeline.answers(steps.post, model.outputs)
        spec = pipeline.picture_input(steps.pre, model.inputs) if steps.pre else None
    except RecipeError as e:
        raise ManifestError(
            f"pipeline of {manifest.name} {manifest.version} does not fit its model: {e.message}",
            hint=e.hint,
        ) from e
    if spec is None:
        return Surface(input=None, takes=(), gives=gives)
    return Surface(input=spec.name, takes=tuple(_forms(spec)), gives=gives)


def has_pictures(surface: Surface | None, arrays: Tensors) -> bool:
    """Whether the inputs of a request must be prepared, which is no work for an event loop."""
    if surface is None or surface.input is None:
        return False
    return _is_one_of(surface.takes, arrays[surface.input])


def prepare_inputs(manifest: Manifest, arrays: Tensors) -> Prepared:
    """Inputs as the model takes them, pictures among them prepared by the pipeline.

    Blocks for as long as decoding takes; Pillow gives the interpreter free meanwhile.

    Args:
        arrays: inputs by name, each in its own spec or in one that `Surface.takes` names.

    Raises:
        RequestError: a picture is damaged, too large or does not fit; it names input and index.
        EngineNotInstalled: Pillow is needed, and not on this board.
    """
    steps = manifest.pipeline.pre
    if not steps:
        return Prepared(dict(arrays), frames_of(manifest, arrays))
    spec = pipeline.picture_input(steps, manifest.model.inputs)
    pictures = arrays[spec.name]
    if not _is_one_of(tuple(_forms(spec)), pictures):
        return Prepared(dict(arrays), frames_of(manifest, arrays))
    if pictures.dtype == np.uint8 and pictures.ndim == _CHANNELS:
        pictures = pictures[np.newaxis]
    samples: list[NDArray[Any]] = []
    frames: list[Frame] = []
    left_pixels, size_bytes = pipeline.MAX_PIXELS, 0
    for index, picture in enumerate(pictures):
        what = f"input {spec.name!r}: picture {index}"
        try:
            sample = pipeline.prepare(
                steps,
                picture,
                what=what,
                most_pixels=left_pixels,
                formats=pipeline.SERVED_FORMATS,
            )
        except DataError as e:
            raise RequestError(e.message, hint=e.hint) from e
        _check_sample(sample.array, samples[:1], spec, what)
        size_bytes += sample.array.nbytes
        if size_bytes > MAX_PREPARED_BYTES:
            raise RequestError(
                f"{what}: the pictures of the request become more than {MAX_PREPARED_BYTES} bytes",
                hint="send fewer at once",
            )
        left_pixels -= sample.frame.width * sample.frame.height
        samples.append(sample.array)
        frames.append(sample.frame)
    batched = len(spec.shape) == _BATCHED_AXES
    prepared = np.stack(samples) if batched else samples[0]
    return Prepared({**arrays, spec.name: prepared}, tuple(frames))


def frames_of(manifest: Manifest, arrays: Tensors) -> tuple[Frame, ...]:
    """The frames of inputs that hold no pictures: boxes are then in pixels of the input itself."""
    steps, inputs = manifest.pipeline, manifest.model.inputs
    spec = pipeline.picture_input(steps.pre, inputs) if steps.pre else _likely(inputs)
    array = arrays[spec.name]
    count = array.shape[0] if array.ndim else 1
    if array.ndim < _CHANNELS:
        return (pipeline.whole(1, 1),) * count
    if array.ndim == _CHANNELS:
        count = 1
    if steps.pre:
        channels_last = pipeline.form_of(steps.pre).channels_last
    else:
        channels_last = array.shape[-1] in (1, _CHANNELS)
    height, width = array.shape[-3:-1] if channels_last else array.shape[-2:]
    return (pipeline.whole(width, height),) * count


def finish(
    manifest: Manifest, outputs: Tensors, frames: Sequence[Frame]
) -> dict[str, NDArray[Any]]:
    """The pipeline's outputs, by the names of `Surface.gives`.

    Ranking takes microseconds; boxes take up to some milliseconds a picture.

    Args:
        outputs: of the model, for the samples of one request.
        frames: of these samples, from `prepare_inputs` or `frames_of`.

    Raises:
        EngineError: an output has another shape than a step takes.
    """
    return pipeline.finish(manifest.pipeline.post, outputs, frames)


def _forms(spec: TensorSpec) -> Iterator[TensorSpec]:
    """The forms that a picture may have in place of an input."""
    batch = spec.shape[0] if len(spec.shape) == _BATCHED_AXES else 1
    yield TensorSpec(name=spec.name, datatype="BYTES", shape=(batch,))
    for shape in ((batch, -1, -1, _CHANNELS), (-1, -1, _CHANNELS)):
        # One picture without a batch axis cannot stand for several.
        alone = len(shape) == _CHANNELS and batch not in (-1, 1)
        own = spec.datatype == "UINT8" and len(spec.shape) == len(shape)
        if not own and not alone:
            yield TensorSpec(name=spec.name, datatype="UINT8", shape=shape)


def _is_one_of(forms: Sequence[TensorSpec], array: NDArray[Any]) -> bool:
    dtypes = [(DTYPES[form.datatype], len(form.shape)) for form in forms]
    return (array.dtype, array.ndim) in dtypes


def _likely(inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The input that most likely holds pictures: the one of most axes, the first of equals."""
    return max(inputs, key=lambda spec: (len(spec.shape), math.prod(spec.shape) != 0))


def _check_sample(
    sample: NDArray[Any], before: Sequence[NDArray[Any]], spec: TensorSpec, what: str
) -> None:
    inner = spec.shape[1:] if len(spec.shape) == _BATCHED_AXES else spec.shape
    if any(wanted not in (-1, size) for size, wanted in zip(sample.shape, inner, strict=True)):
        raise RequestError(f"{what} becomes {list(sample.shape)}, the model takes {list(inner)}")
    if before and before[0].shape != sample.shape:
        raise RequestError(
            f"{what} becomes {list(sample.shape)}, those before it {list(before[0].shape)}",
            hint="send pictures of one size, or each in a request of its own",
        )
