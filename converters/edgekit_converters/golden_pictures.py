"""Golden pictures: golden samples as they came, and what they come to, for a board to repeat.

A picture of a folder goes into the bundle byte for byte where it is JPEG or PNG, other formats as
PNG of the same pixels. Of samples given as uint8 pixels the first is written as PNG. Each is taken
the whole way here before it ships: its bytes become the golden input exactly, or the build says so.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import golden
from edgekit.errors import DataError
from edgekit.golden import AnyAnswer, Expected, GoldenAnswers, Picture
from edgekit.manifest import TensorSpec
from edgekit.steps import Channels, Normalise, PostStep, PreStep
from edgekit.structs import Strict
from edgekit_converters.data import Samples
from edgekit_converters.golden import round_up
from edgekit_runtime import pipeline
from edgekit_runtime.pipeline import Frame

MAX_RAW_BYTES = 16 << 20
"""Of all pictures of a bundle together; those beyond it are left out."""

# One of the 255 steps of a pixel, on average over a picture: what decoders of JPEG may differ by.
_INPUT_LEVELS = 1.0
_MARGIN = 2.0
# Few pictures may not show by how much right runs differ; of 8 bits a step may be a tenth of a
# score. A board that is refused wrongly is worse than a check that leaves room: outputs and inputs
# are compared more closely beside it.
_SCORE_SHARE = {"float": 0.02, "quantised": 0.1}
_IOU_SHARE = {"float": 0.1, "quantised": 0.25}

Outputs = Mapping[str, NDArray[Any]]
Answers = tuple[tuple[AnyAnswer, ...], ...]


@dataclass(frozen=True)
class Raw:
    """A golden sample as it came.

    Attributes:
        picture: its entry, and its position among the golden samples.
        data: of the entry.
        frame: where the picture lies in the input.
    """

    picture: Picture
    data: bytes
    frame: Frame


@dataclass(frozen=True)
class Run:
    """A variant that was executed.

    Attributes:
        outputs: to all golden samples, by name.
        slack: that was found there.
        is_quantised: whether its arithmetic is in fewer bits than the source's.
    """

    outputs: Outputs
    slack: Slack | None
    is_quantised: bool


class Slack(Strict, frozen=True, kw_only=True):
    """How far apart right runs of a variant were in their final answers; see `pipeline.Gap`."""

    score: float
    iou: float


def find(
    samples: Samples,
    inputs: Sequence[TensorSpec],
    steps: Sequence[PreStep],
    *,
    most_bytes: int = MAX_RAW_BYTES,
) -> list[Raw]:
    """The golden samples that are pictures, as they came; none where the data holds only inputs.

    Args:
        most_bytes: of all that are kept.

    Raises:
        DataError: a file has changed since it was read.
    """
    if not steps:
        return []
    name = pipeline.picture_input(steps, inputs).name
    array = samples.arrays[name]
    if not samples.files:
        return _from_pixels(np.asarray(array[0]), steps)
    found: list[Raw] = []
    for number, file in enumerate(samples.files):
        suffix, data = _encoded(file)
        sample = pipeline.prepare(steps, data, what=str(file))
        if not np.array_equal(sample.array, np.asarray(array[number])):
            raise DataError(f"{file} has changed while it was read", hint="build again")
        if sum(len(raw.data) for raw in found) + len(data) <= most_bytes:
            found.append(_raw(number, suffix, data, sample.frame))
    return found


def slack(
    raws: Sequence[Raw], post: Sequence[PostStep], outputs: Outputs, others: Outputs
) -> Slack | None:
    """How far apart two right runs are in what they answer; None where nothing is answered."""
    if not raws or not post:
        return None
    worst = pipeline.Gap()
    pairs = zip(answered(raws, post, outputs), answered(raws, post, others), strict=True)
    for ours, theirs in pairs:
        worst = pipeline.joined(worst, pipeline.gap(post, ours, theirs))
    return Slack(score=worst.score, iou=worst.iou)


def answered(raws: Sequence[Raw], post: Sequence[PostStep], outputs: Outputs) -> Answers:
    """What each picture comes to, from a model's outputs to all golden samples."""
    given = []
    post = pipeline.thorough(post)
    for raw in raws:
        own = slice(raw.picture.sample, raw.picture.sample + 1)
        one = {name: array[own] for name, array in outputs.items()}
        found = pipeline.finish(post, one, (raw.frame,))
        given.append(pipeline.answers_of(post, found, 0))
    return tuple(given)


def entries(
    raws: Sequence[Raw],
    *,
    inputs: Sequence[TensorSpec],
    pre: Sequence[PreStep],
    post: Sequence[PostStep],
    variants: Mapping[str, Run],
) -> dict[str, bytes]:
    """Entries of the pictures, and `golden/answers.json`; none without pictures.

    Args:
        inputs: of the model, one of which pictures become.
        variants: those that were executed, by name.
    """
    if not raws:
        return {}
    content = GoldenAnswers(
        input=pipeline.picture_input(pre, inputs).name,
        input_atol=round_up(_INPUT_LEVELS * _level(pre)),
        pictures=tuple(raw.picture for raw in raws),
        variants={
            name: _expected(answered(raws, post, run.outputs), run)
            for name, run in variants.items()
        },
    )
    found = {raw.picture.entry: raw.data for raw in raws}
    return {**found, golden.ENTRY: golden.encode(content)}


def _expected(answers: Answers, run: Run) -> Expected:
    """Answers with how far another board may be from them.

    Scores may move by twice what two kernels of the artefact were seen to differ by, and a share of
    the largest score, of 1 at least. Boxes alike.
    """
    seen = run.slack or Slack(score=0.0, iou=1.0)
    kind = "quantised" if run.is_quantised else "float"
    scores = [
        abs(score)
        for picture in answers
        for answer in picture
        for score in (answer.values if isinstance(answer, golden.Scores) else answer.scores)
    ]
    # Few pictures may hold weak answers only; most scores are probabilities.
    largest = max([1.0, *scores])
    apart = round_up(min(_MARGIN * (1 - seen.iou) + _IOU_SHARE[kind], 1.0))
    return Expected(
        score_atol=round_up(_MARGIN * seen.score + _SCORE_SHARE[kind] * largest),
        min_iou=round(1 - apart, 6),
        pictures=answers,
    )


def _level(steps: Sequence[PreStep]) -> float:
    """What one step of a pixel is in the input."""
    scales = [abs(std) for step in steps if isinstance(step, Normalise) for std in step.std]
    return 1 / min(scales) if scales else 1.0


def _from_pixels(sample: NDArray[Any], steps: Sequence[PreStep]) -> list[Raw]:
    """The first sample as a PNG, where it is the pixels of one."""
    form = pipeline.form_of(steps)
    if sample.dtype != np.uint8 or sample.ndim != len(form.shape):
        return []
    pixels = sample if form.channels_last else sample.transpose(1, 2, 0)
    if any(isinstance(step, Channels) and step.order == "bgr" for step in steps):
        pixels = pixels[..., ::-1]
    data = _png(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    prepared = pipeline.prepare(steps, data)
    # A step that changes pixels has no way back.
    if not np.array_equal(prepared.array, sample):
        return []
    return [_raw(0, ".png", data, prepared.frame)]


def _raw(number: int, suffix: str, data: bytes, frame: Frame) -> Raw:
    entry = f"{golden.RAW}{number:03d}{suffix}"
    return Raw(Picture(entry=entry, sample=number), data, frame)


def _encoded(file: Path) -> tuple[str, bytes]:
    try:
        data = file.read_bytes()
    except OSError as e:
        raise DataError(f"picture {file} cannot be read: {e.strerror}") from e
    if data.startswith(b"\xff\xd8\xff"):
        return ".jpg", data
    if data.startswith(b"\x89PNG"):
        return ".png", data
    return ".png", _png(pipeline.decode(data, what=str(file)))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
