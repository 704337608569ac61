"""Pictures probe: golden pictures must come to their golden answers here, the whole way.

Decoders and resizers differ between machines as engines do. So each picture is decoded and prepared
as a request's would be, compared with the golden input, run, and finished; a difference names the
picture and what differs.
"""

from __future__ import annotations

import logging

import numpy as np

from edgekit import golden
from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit.errors import DataError, EngineNotInstalled, GoldenMismatch
from edgekit.golden import GoldenAnswers, Picture
from edgekit.manifest import Variant
from edgekit_runtime import pipeline
from edgekit_runtime.engines import Session, Tensors
from edgekit_runtime.engines.batches import run_all

log = logging.getLogger(__name__)


def probe_pictures(bundle: Bundle, variant: Variant, session: Session) -> int | None:
    """Take every golden picture from its bytes to its answers, and compare.

    Returns:
        How many pictures were tried; None where the bundle has none, or this machine cannot decode
        them: it then serves tensors, and answers pictures with an error.

    Raises:
        GoldenMismatch: a picture becomes another input, or comes to other answers.
        BundleError: `golden/answers.json` is not valid.
        EngineError: the engine refused.
    """
    if golden.ENTRY not in bundle.manifest.entries:
        return None
    answers = golden.decode(bundle.read(golden.ENTRY))
    inputs = bundle.tensors(GOLDEN_INPUTS)
    for number, picture in enumerate(answers.pictures):
        try:
            sample = _prepared(bundle, picture)
        except EngineNotInstalled as e:
            log.warning(
                "golden pictures are not tried: %s", e.with_hint, extra={"variant": variant.name}
            )
            return None
        _compare_input(answers, picture, sample, inputs)
        _compare_answers(bundle, variant, session, answers, number, sample, inputs)
    return len(answers.pictures)


def _prepared(bundle: Bundle, picture: Picture) -> pipeline.Sample:
    steps = bundle.manifest.pipeline.pre
    try:
        return pipeline.prepare(steps, bundle.read(picture.entry), what=picture.entry)
    except DataError as e:
        raise GoldenMismatch(
            f"{e.message}; its build could read it", hint="install another version of Pillow"
        ) from e


def _compare_input(
    answers: GoldenAnswers, picture: Picture, sample: pipeline.Sample, inputs: Tensors
) -> None:
    known = inputs.get(answers.input)
    if known is None or picture.sample >= len(known):
        raise GoldenMismatch(
            f"{picture.entry} is sample {picture.sample} of input {answers.input!r}, which"
            f" {GOLDEN_INPUTS} does not hold"
        )
    want = known[picture.sample]
    if sample.array.shape != want.shape:
        raise GoldenMismatch(
            f"{picture.entry} becomes {list(sample.array.shape)}, golden is {list(want.shape)}"
        )
    difference = np.abs(sample.array.astype(np.float64) - want.astype(np.float64)).mean()
    if not difference <= answers.input_atol:
        raise GoldenMismatch(
            f"{picture.entry} is prepared otherwise than at its build: input {answers.input!r} is"
            f" off by {difference:.4g} on average, {answers.input_atol:g} is allowed",
            hint="another version of Pillow may resize or decode otherwise; install a current one",
        )


def _compare_answers(
    bundle: Bundle,
    variant: Variant,
    session: Session,
    answers: GoldenAnswers,
    number: int,
    sample: pipeline.Sample,
    inputs: Tensors,
) -> None:
    expected = answers.variants.get(variant.name)
    if expected is None:
        return
    picture, steps = answers.pictures[number], bundle.manifest.pipeline.post
    arrays = {name: array[picture.sample : picture.sample + 1] for name, array in inputs.items()}
    arrays[answers.input] = sample.array[np.newaxis]
    outputs = run_all(session, arrays, max_batch=1)
    thorough = pipeline.thorough(steps)
    found = pipeline.finish(thorough, outputs, (sample.frame,))
    got = pipeline.answers_of(thorough, found, 0)
    apart = pipeline.gap(steps, got, expected.pictures[number])
    if apart.score > expected.score_atol or apart.iou < expected.min_iou:
        raise GoldenMismatch(
            f"variant {variant.name} answers {picture.entry} otherwise than at its build:"
            f" {apart.where}; scores may differ by {expected.score_atol:g}, boxes overlap by"
            f" {expected.min_iou:g} at least",
            hint="this engine or accelerator does not compute what was built; do not serve it",
        )
