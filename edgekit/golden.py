"""Golden answers: what pictures come to at the end of a pipeline, as `golden/answers.json` says.

The pictures lie beside it as they came, `golden/raw/NNN.jpg` or `.png`, so that a board proves the
whole way: decoding, preparing, the model, and what makes answers of its outputs. docs/bundle.md is
the reference of the format.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgekit import manifest
from edgekit.errors import BundleError
from edgekit.manifest import EntryName, Tolerance
from edgekit.steps import Share
from edgekit.structs import Strict

ENTRY = "golden/answers.json"
RAW = "golden/raw/"
MAX_PICTURES = 64

Finite = Annotated[float, msgspec.Meta(ge=-3.5e38, le=3.5e38)]
Index = Annotated[int, msgspec.Meta(ge=0)]


class Answer(Strict, frozen=True, tag_field="kind"):
    """Base of what one step says of one picture; `kind` says which."""


class Ranking(Answer, frozen=True, kw_only=True, tag="ranking"):
    """The best classes, best first: of `top_k`."""

    indices: tuple[Index, ...]
    scores: tuple[Finite, ...]

    def __post_init__(self) -> None:
        if len(self.indices) != len(self.scores):
            raise ValueError("a ranking has as many indices as scores")


class Detections(Answer, frozen=True, kw_only=True, tag="boxes"):
    """The boxes, best first: x1, y1, x2, y2 in pixels of the picture."""

    boxes: tuple[tuple[Finite, Finite, Finite, Finite], ...]
    scores: tuple[Finite, ...]
    classes: tuple[Index, ...]

    def __post_init__(self) -> None:
        if len({len(self.boxes), len(self.scores), len(self.classes)}) != 1:
            raise ValueError("detections have as many boxes as scores and classes")


class Scores(Answer, frozen=True, kw_only=True, tag="scores"):
    """The probability of each class: of `softmax` and `sigmoid`."""

    values: tuple[Finite, ...]


AnyAnswer = Ranking | Detections | Scores


class Picture(Strict, frozen=True, kw_only=True):
    """One picture.

    Attributes:
        entry: `golden/raw/NNN.jpg` or `.png`.
        sample: its position in `golden/inputs.safetensors`.
    """

    entry: EntryName
    sample: Index

    def __post_init__(self) -> None:
        if not self.entry.startswith(RAW):
            raise ValueError(f"a golden picture must lie below {RAW}")


class Expected(Strict, frozen=True, kw_only=True):
    """What one variant answered, and how far another board may be from that.

    Attributes:
        score_atol: of a score; what is nearer than that to being listed or not may be either.
        min_iou: of a box with its counterpart.
        pictures: for each picture what each step gives, in their order.
    """

    score_atol: Tolerance
    min_iou: Share
    pictures: tuple[tuple[AnyAnswer, ...], ...]


class GoldenAnswers(Strict, frozen=True, kw_only=True):
    """`golden/answers.json`.

    Attributes:
        input: the model's input that a picture becomes.
        input_atol: largest mean absolute difference of that input from the golden one; other
            decoders of JPEG round differently, a wrong step is far off.
        variants: by name; those that nothing executed at build are not among them.
    """

    format: Literal[1] = 1
    input: str
    input_atol: Tolerance
    pictures: Annotated[tuple[Picture, ...], msgspec.Meta(min_length=1, max_length=MAX_PICTURES)]
    variants: dict[str, Expected]

    def __post_init__(self) -> None:
        for name, expected in self.variants.items():
            if len(expected.pictures) != len(self.pictures):
                raise ValueError(f"variant {name} has answers to another number of pictures")


def encode(answers: GoldenAnswers) -> bytes:
    """Canonical JSON."""
    return manifest.canonical(answers)


def decode(raw: bytes) -> GoldenAnswers:
    """Read `golden/answers.json`, raising `BundleError` that names the wrong field."""
    tree = manifest.decode_json(raw, ENTRY)
    try:
        return msgspec.convert(tree, GoldenAnswers)
    except msgspec.ValidationError as e:
        raise BundleError(f"{ENTRY} is not valid: {e}") from e
