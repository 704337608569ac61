"""Steps: what stands before and after a model, as data that a recipe, a manifest and a board share.

One struct a step; the field `op` says which. `edgekit_runtime.pipeline` runs them, in the build's
evaluation and on the board alike. Names are those of torchvision, TFLite and Ultralytics, whichever
of them users of such a model know.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgekit.structs import Strict

MAX_PRIORS = 1 << 20

Positive = Annotated[int, msgspec.Meta(gt=0, le=65536)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
Coordinate = Annotated[int, msgspec.Meta(ge=0, le=65536)]
Length = Annotated[float, msgspec.Meta(gt=0, le=65536)]
Prefix = Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z][A-Za-z0-9_]{0,31})?\Z")]
Labels = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=65536)]

Resample = Literal["nearest", "bilinear", "bicubic"]
Order = Literal["rgb", "bgr", "gray"]
Activation = Literal["none", "sigmoid", "softmax"]
Family = Literal["yolov5", "yolov8", "ssd", "decoded", "rows"]
Corners = Literal["xyxy", "yxyx", "xywh", "cxcywh", "cycxhw"]


class Step(Strict, frozen=True, tag_field="op"):
    """Base of a pipeline step; the field `op` says which one."""


class Resize(Step, frozen=True, kw_only=True, tag="resize"):
    """Picture [h, w, 3] to [height, width, 3], or its shorter edge to `shorter` pixels.

    Attributes:
        antialias: averages all pixels that become one, as Pillow and torchvision do. Without it
            the pixels around one point are interpolated and the others skipped, as OpenCV and
            TensorFlow do unless told otherwise.
    """

    width: Positive | None = None
    height: Positive | None = None
    shorter: Positive | None = None
    resample: Resample = "bicubic"
    antialias: bool = True

    def __post_init__(self) -> None:
        both = self.width is not None and self.height is not None
        neither = self.width is None and self.height is None
        if not ((both and self.shorter is None) or (neither and self.shorter is not None)):
            raise ValueError("resize takes either width and height, or shorter")


class Letterbox(Step, frozen=True, kw_only=True, tag="letterbox"):
    """Picture resized with its aspect kept, and padded to [height, width, 3].

    Source: Ultralytics, `ultralytics.data.augment.LetterBox`, whose names and rounding these are.

    Attributes:
        fill: colour of the padding, in RGB.
        center: pads on both sides; else right and below.
        scaleup: small pictures are enlarged; else they are only padded.
    """

    width: Positive
    height: Positive
    fill: tuple[Byte, Byte, Byte] = (114, 114, 114)
    center: bool = True
    scaleup: bool = True
    resample: Resample = "bilinear"
    antialias: bool = True


class CenterCrop(Step, frozen=True, kw_only=True, tag="center_crop"):
    """The middle [height, width, 3] of a picture."""

    width: Positive
    height: Positive


class Crop(Step, frozen=True, kw_only=True, tag="crop"):
    """One region [height, width, 3] of a picture, as a fixed camera has it."""

    top: Coordinate
    left: Coordinate
    height: Positive
    width: Positive


class Channels(Step, frozen=True, kw_only=True, tag="channels"):
    """The order of the colours the model takes; `gray` is one channel, by ITU-R 601 luma."""

    order: Order


class Normalise(Step, frozen=True, kw_only=True, tag="normalise"):
    """Pixels to float32 (x - mean) / std, by channel, in units of 0..255.

    One number stands for all channels, three for each in the order that `channels` left.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (255.0,)

    def __post_init__(self) -> None:
        if 0.0 in self.std:
            raise ValueError("normalise cannot divide by a std of 0")
        if not {len(self.mean), len(self.std)} <= {1, 3}:
            raise ValueError("normalise takes one number or three, for mean and for std")


class Layout(Step, frozen=True, kw_only=True, tag="layout"):
    """The order of the axes the model takes."""

    to: Literal["NCHW", "NHWC"]


class Dtype(Step, frozen=True, kw_only=True, tag="dtype"):
    """The datatype the model takes; float32 without this step. UINT8 takes pixels as they are."""

    to: Literal["UINT8", "FP16", "FP32"]


class Softmax(Step, frozen=True, kw_only=True, tag="softmax"):
    """Scores [n, c] to probabilities [n, c] that add up to 1.

    Attributes:
        output: of the model; None where it has one.
    """

    output: str | None = None


class Sigmoid(Step, frozen=True, kw_only=True, tag="sigmoid"):
    """Scores [n, c] to probabilities [n, c], each class by itself; `output` as in `Softmax`."""

    output: str | None = None


class TopK(Step, frozen=True, kw_only=True, tag="top_k"):
    """Scores [n, c] to the k best classes, best first; gives `labels`, `scores` and `indices`.

    Attributes:
        labels: names by class.
        output: of the model; None where it has one.
        prefix: before the names of what it gives.
    """

    k: Positive = 5
    labels: Labels | None = None
    output: str | None = None
    prefix: Prefix = ""


class PriorLayer(Strict, frozen=True, kw_only=True):
    """The priors of one feature map: row by row, in each cell those of `sizes` in turn.

    Attributes:
        rows, columns: of the feature map.
        sizes: (width, height) of each prior, as shares of the input.
        step: (x, y) from one cell's centre to the next, as shares of the input; None divides the
            input evenly. The first centre lies half a step from the edge.
    """

    rows: Positive
    columns: Positive
    sizes: Annotated[tuple[tuple[Length, Length], ...], msgspec.Meta(min_length=1, max_length=64)]
    step: tuple[Length, Length] | None = None

    @property
    def count(self) -> int:
        return self.rows * self.columns * len(self.sizes)


class Boxes(Step, frozen=True, kw_only=True, tag="boxes"):
    """What a detector answers to boxes in pixels of the picture, best first.

    Gives `boxes`, `box_scores`, `box_classes`, `box_counts`, and with names `box_labels`.

    | family | `output` | others |
    |---|---|---|
    | `yolov8` | [n, 4 + c, d]: centre x, y, width, height, score of each class | |
    | `yolov5` | [n, d, 5 + c]: the same with an object's score before the classes' | |
    | `ssd` | [n, d, 4]: offsets from priors | `scores` [n, d, c] |
    | `decoded` | [n, d, 4]: boxes | `scores` [n, d, c], or [n, d] with `classes` [n, d] |
    | `rows` | [n, d, 6]: box, score, class | |

    Attributes:
        output: None where the model has one.
        scores, classes, count: further outputs of the model, by name; `count` [n] or [n, 1] says
            how many of the d are real.
        corners: how four numbers are a box, in torchvision's terms; of `ssd`, in which order
            offsets stand. None is the family's own: xyxy for `decoded` and `rows`, cxcywh else.
        normalized: boxes are shares of the input instead of its pixels.
        activation: makes probabilities of the scores.
        background: a class of `scores` that is none; the others are counted without it.
        priors: of `ssd`, layer by layer.
        variances: of `ssd`, of centre and size (TensorFlow's scale factors 10 and 5 are .1, .2).
        score_threshold: boxes below it are dropped.
        iou_threshold: of boxes of one class that overlap more, the best is kept; None keeps all,
            where the model has suppressed the others itself.
        max_detections: most boxes of a picture.
        class_agnostic: boxes of different classes suppress each other, too.
        multi_label: an anchor may be a box of several classes; else it is one of its best class.
    """

    family: Family
    output: str | None = None
    scores: str | None = None
    classes: str | None = None
    count: str | None = None
    corners: Corners | None = None
    normalized: bool = False
    activation: Activation = "none"
    background: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    priors: tuple[PriorLayer, ...] = ()
    variances: tuple[Length, Length] = (0.1, 0.2)
    score_threshold: Share = 0.25
    iou_threshold: Share | None = 0.45
    max_detections: Annotated[int, msgspec.Meta(gt=0, le=1000)] = 100
    class_agnostic: bool = False
    multi_label: bool = False
    labels: Labels | None = None
    prefix: Prefix = ""

    def __post_init__(self) -> None:
        if (self.family == "ssd") != bool(self.priors):
            raise ValueError("boxes takes priors for family ssd, and for no other")
        if self.family == "ssd" and self.corners not in (None, "cxcywh", "cycxhw"):
            raise ValueError("boxes of family ssd have corners cxcywh or cycxhw")
        if sum(layer.count for layer in self.priors) > MAX_PRIORS:
            raise ValueError(f"boxes has more than {MAX_PRIORS} priors")
        apart = self.family in ("ssd", "decoded")
        if apart != (self.scores is not None):
            raise ValueError("boxes takes scores for the families ssd and decoded, and no other")
        if self.family != "decoded" and (self.classes is not None or self.count is not None):
            raise ValueError("boxes takes classes and count for the family decoded alone")
        if self.background is not None and (not apart or self.classes is not None):
            raise ValueError("boxes has a background where scores [n, d, c] stand apart")


PreStep = Resize | Letterbox | CenterCrop | Crop | Channels | Normalise | Layout | Dtype
PostStep = Softmax | Sigmoid | TopK | Boxes
