"""Recorded speech: telephone prompts spoken by two people, in English and in Canadian French.

Promise: recordings come in the same order with the same values. They were published for telephones,
at 8 kHz, and are brought to the 16 kHz that speech models take by zero-padding their spectrum: the
upper half of the band stays empty, as it does on a call.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.build.models.packages import debian

SOURCE = "Debian asterisk-core-sounds-en-wav and -fr-wav 1.6.1 (CC-BY-SA-3.0): telephone prompts"
RATE_HZ = 16_000
_PACKAGES = ("asterisk-core-sounds-en-wav=1.6.1-1", "asterisk-core-sounds-fr-wav=1.6.1-1")
_MIN_SECONDS = 4.0


def recordings(cache: Path, *, each: int) -> Iterator[NDArray[np.float32]]:
    """The first `each` prompts of at least 4 s of each speaker: samples in -1 to 1 at 16 kHz."""
    for package in _PACKAGES:
        files = sorted(debian(cache, package).rglob("*.wav"))
        long_enough = (sound for sound in map(_read, files) if len(sound) > _MIN_SECONDS * RATE_HZ)
        for _, sound in zip(range(each), long_enough, strict=False):
            yield sound


def _read(path: Path) -> NDArray[np.float32]:
    with wave.open(str(path), "rb") as file:
        raw = file.readframes(file.getnframes())
        rate = file.getframerate()
    sound = np.frombuffer(raw, np.int16).astype(np.float64) / 32768
    return _resampled(sound, len(sound) * RATE_HZ // rate).astype(np.float32)


def _resampled(sound: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(sound)
    padded = np.zeros(length // 2 + 1, spectrum.dtype)
    padded[: len(spectrum)] = spectrum
    return np.fft.irfft(padded, length) * (length / len(sound))
