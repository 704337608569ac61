"""openWakeWord's speech embedding: a convolutional network over a mel spectrogram."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.build.models import speech
from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "openwakeword==0.4.0"
_FOLDER = "openwakeword/resources/models"
_FRAMES, _BANDS = 76, 32
_RECORDINGS, _EACH = 15, 10


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / _FOLDER / "embedding_model.onnx", cache, "wake_word")


def samples(cache: Path) -> Path:
    """`input_1` float32 [300, 76, 32, 1]: spectrogram windows of 30 recordings, and `groups`.

    The spectrogram comes from the package's own model, scaled as the package scales it.
    """
    front = pypi(cache, _PACKAGE) / _FOLDER / "melspectrogram.onnx"
    session = onnxruntime.InferenceSession(front, providers=["CPUExecutionProvider"])
    found, groups = [], []
    for number, sound in enumerate(speech.recordings(cache, each=_RECORDINGS)):
        (raw,) = session.run(None, {"input": sound[None] * 32767})
        spectrum = raw.reshape(-1, _BANDS, 1) / 10 + 2
        starts = np.linspace(0, len(spectrum) - _FRAMES, _EACH).round().astype(int)
        found += [spectrum[start : start + _FRAMES] for start in starts]
        groups += [number] * _EACH
    path = data_file(cache, "wake_word")
    write_arrays(path, input_1=np.stack(found).astype(np.float32), groups=np.array(groups))
    return path


MODEL = Model(
    name="wake_word",
    family="speech embedding, convolutions",
    package=_PACKAGE,
    licence="Apache-2.0; model CC-BY-NC-SA-4.0",
    data=speech.SOURCE,
    output="conv2d_19",
    agreement="neighbours",
    fetch=fetch,
    samples=samples,
)
