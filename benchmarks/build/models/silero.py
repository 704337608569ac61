"""Silero VAD: a voice detector with convolutions and an LSTM, whose state comes in and goes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.build.models import speech
from benchmarks.build.models.entry import Model, copied, data_file
from benchmarks.build.models.packages import pypi
from edgekit_converters.demo.files import write_arrays

_PACKAGE = "silero-vad==6.2.3"
_FILE = "silero_vad/data/silero_vad_16k_op15.onnx"
_WINDOW, _CONTEXT = 512, 64
_RECORDINGS, _EACH = 15, 20
_SEED = 22


def fetch(cache: Path) -> Path:
    """The model as the package carries it."""
    return copied(pypi(cache, _PACKAGE) / _FILE, cache, "silero")


def samples(cache: Path) -> Path:
    """Windows of 30 recordings with the state that the model had when it came to them.

    `input` float32 [600, 576], `state` float32 [600, 2, 1, 128], `sr` int64 [600] and `groups`.
    Every other recording has white noise mixed in, 10 dB below the voice.
    """
    session = onnxruntime.InferenceSession(fetch(cache), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(_SEED)
    inputs, states, groups = [], [], []
    for number, sound in enumerate(speech.recordings(cache, each=_RECORDINGS)):
        noise = rng.standard_normal(len(sound)).astype(np.float32) * sound.std() * 0.316
        heard = sound + noise if number % 2 else sound
        windows, seen = _listen(session, heard)
        chosen = np.linspace(0, len(windows) - 1, _EACH).round().astype(int)
        inputs += [windows[position] for position in chosen]
        states += [seen[position] for position in chosen]
        groups += [number] * _EACH
    path = data_file(cache, "silero")
    rates = np.full(len(inputs), speech.RATE_HZ, np.int64)
    write_arrays(
        path, input=np.stack(inputs), state=np.stack(states), sr=rates, groups=np.array(groups)
    )
    return path


def _listen(
    session: onnxruntime.InferenceSession, sound: NDArray[np.float32]
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Every window of a recording, and the state before each."""
    state = np.zeros((2, 1, 128), np.float32)
    rate = np.array(speech.RATE_HZ, np.int64)
    padded = np.concatenate([np.zeros(_CONTEXT, np.float32), sound])
    windows, states = [], []
    for start in range(0, len(sound) - _WINDOW, _WINDOW):
        window = padded[start : start + _CONTEXT + _WINDOW]
        windows.append(window)
        states.append(state)
        feeds = {"input": window[None], "state": state, "sr": rate}
        state = session.run(["stateN"], feeds)[0]
    return windows, states


MODEL = Model(
    name="silero",
    family="voice detector, convolutions and LSTM",
    package=_PACKAGE,
    licence="MIT",
    data=speech.SOURCE,
    output="output",
    agreement="threshold",
    fetch=fetch,
    samples=samples,
    options=("--fix", "sr=16000"),
)
