"""NudeNet 320n: a detector of the YOLOv8 nano family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.build.models import photographs
from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "nudenet==3.4.2"
_SIZE, _CROPS = 320, 20


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / "nudenet/320n.onnx", cache, "nudenet")


def samples(cache: Path) -> Path:
    """`images` float32 [400, 3, 320, 320], BGR in 0 to 1 as the package feeds it, and `groups`."""
    found, groups = photographs.crops(_SIZE, each=_CROPS, prepare=_prepare)
    path = data_file(cache, "nudenet")
    write_arrays(path, images=found, groups=groups)
    return path


def _prepare(image: Image.Image) -> NDArray[np.float32]:
    return np.ascontiguousarray(photographs.pixels(image)[:, :, ::-1].transpose(2, 0, 1) / 255)


MODEL = Model(
    name="nudenet",
    family="detector, YOLOv8 nano",
    package=_PACKAGE,
    licence="AGPL-3.0 (its metadata says MIT)",
    data=photographs.SOURCE,
    output="output0",
    agreement="boxes",
    fetch=fetch,
    samples=samples,
    # Its outputs alone do not tell boxes from other numbers, and are compared as those.
    recipe="metric: box_agreement\n",
)
