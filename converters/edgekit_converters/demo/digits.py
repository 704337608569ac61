"""Handwritten digits of scikit-learn, spread over devices, with a model that still has to learn.

Promise: on one machine the same arguments give the same bytes, and no sample is in two files. The
factory has seen a few images of some of the digits; the devices hold the rest, each mostly some
digits. What the factory's model lacks is on the devices, and only a federated round can bring it
in.

Images are 8 x 8 pixels, scaled to 0..1. Source of the skewed split: Hsu, Qi and Brown, "Measuring
the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import storage
from edgekit.errors import DataError
from edgekit_converters.demo.files import write_arrays

OPSET = 17
IR_VERSION = 8
CLASSES = 10
PIXELS = 64
HIDDEN = 32

_FACTORY_CLASSES = 7
_FACTORY_SAMPLES = 105
_HELDOUT_SAMPLES = 400
_LEAST_SAMPLES = 32
_SKEW = 0.5
_EPOCHS = 60
_BATCH = 15
_LEARNING_RATE = 0.1

Weights = Mapping[str, NDArray[np.float32]]


class Samples(msgspec.Struct, frozen=True):
    """Images float32 [n, 64] in 0..1, and the digits int64 [n] they show."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def take(self, which: NDArray[np.intp]) -> Samples:
        """The samples at these positions."""
        return Samples(self.images[which], self.labels[which])


class Split(msgspec.Struct, frozen=True):
    """Positions of samples; together they name every sample once."""

    heldout: NDArray[np.intp]
    factory: NDArray[np.intp]
    devices: list[NDArray[np.intp]]


def write_digits(folder: Path, *, devices: int, seed: int) -> None:
    """Write the factory's model and everybody's data to `folder`.

    `digits.onnx` is the model, input `input` float32 [N, 64], output `logits` float32 [N, 10],
    opset 17, IR 8. `factory.npz` (what it was trained on), `heldout.npz` (for the coordinator) and
    `device-1.npz` to `device-<devices>.npz` hold `input` float32 [n, 64] and `labels` int64 [n].

    Args:
        devices: how many share the data, 1 to 40.
        seed: of the split and of the training.

    Raises:
        DataError: the number of devices does not fit the data, or scikit-learn is not installed.
        StorageError: a file cannot be written.
    """
    rng = np.random.default_rng(seed)
    digits = load()
    parts = split(digits.labels, devices=devices, rng=rng)
    factory = digits.take(parts.factory)
    model = to_onnx(train(initial_weights(rng), factory, rng=rng))
    storage.write(folder / "digits.onnx", model.SerializeToString(deterministic=True))
    files = {"factory": parts.factory, "heldout": parts.heldout}
    files |= {f"device-{number}": part for number, part in enumerate(parts.devices, start=1)}
    for name, part in files.items():
        samples = digits.take(part)
        write_arrays(folder / f"{name}.npz", input=samples.images, labels=samples.labels)


def load() -> Samples:
    """The 1797 digits that scikit-learn carries.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as e:
        raise DataError(
            "scikit-learn, which holds the digits, is not installed",
            hint="pip install 'edgekit-ml[demo]'",
        ) from e
    images, labels = load_digits(return_X_y=True)
    return Samples((images / 16).astype(np.float32), labels.astype(np.int64))


def split(labels: NDArray[np.int64], *, devices: int, rng: np.random.Generator) -> Split:
    """Deal samples out, skewed by label: a device's share of each digit is drawn from Dirichlet.

    The factory gets only digits below 7. Every device gets at least 32 samples.

    Raises:
        DataError: there are too few samples for that many devices, or no device.
    """
    order = rng.permutation(labels.size)
    heldout, rest = order[:_HELDOUT_SAMPLES], order[_HELDOUT_SAMPLES:]
    known = np.flatnonzero(labels[rest] < _FACTORY_CLASSES)[:_FACTORY_SAMPLES]
    factory, rest = rest[known], np.delete(rest, known)
    most = rest.size // _LEAST_SAMPLES
    if not 1 <= devices <= most:
        raise DataError(
            f"{devices} devices cannot share {rest.size} digits at {_LEAST_SAMPLES} or more each",
            hint=f"choose 1 to {most} devices",
        )
    first, rest = np.split(rest, [devices * _LEAST_SAMPLES])
    hands = [[share] for share in np.split(first, devices)]
    for label in range(CLASSES):
        pile = rest[labels[rest] == label]
        shares = rng.dirichlet(np.full(devices, _SKEW))
        cuts = np.rint(np.cumsum(shares)[:-1] * pile.size).astype(np.intp)
        for hand, share in zip(hands, np.split(pile, cuts), strict=True):
            hand.append(share)
    return Split(heldout, factory, [rng.permutation(np.concatenate(hand)) for hand in hands])


def initial_weights(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Random weights of the network, scaled by fan-in as He et al. (2015) propose."""
    weights = {}
    for name, rows, columns in (("fc1", HIDDEN, PIXELS), ("fc2", CLASSES, HIDDEN)):
        values = rng.standard_normal((rows, columns)) * np.sqrt(2 / columns)
        weights[f"{name}.weight"] = values.astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(rows, np.float32)
    return weights


def train(
    weights: Weights,
    samples: Samples,
    *,
    rng: np.random.Generator,
    epochs: int = _EPOCHS,
    batch: int = _BATCH,
    learning_rate: float = _LEARNING_RATE,
) -> dict[str, NDArray[np.float32]]:
    """New weights after plain SGD on the mean cross-entropy; `weights` stay as they are."""
    w = {name: value.copy() for name, value in weights.items()}
    for _ in range(epochs):
        order = rng.permutation(samples.labels.size)
        for start in range(0, order.size, batch):
            gradients = _gradients(w, samples.take(order[start : start + batch]))
            for name, gradient in gradients.items():
                w[name] -= np.float32(learning_rate) * gradient
    return w


def logits(weights: Weights, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network answers to images [n, 64]: [n, 10]."""
    return _forward(weights, images)[1]


def to_onnx(weights: Weights) -> onnx.ModelProto:
    """The network as a graph: Gemm, Relu, Gemm, with the names of `weights` as initialisers."""
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node(
                    "Gemm", ["input", "fc1.weight", "fc1.bias"], ["fc1"], "fc1", transB=1
                ),
                helper.make_node("Relu", ["fc1"], ["hidden"], "relu"),
                helper.make_node(
                    "Gemm", ["hidden", "fc2.weight", "fc2.bias"], ["logits"], "fc2", transB=1
                ),
            ],
            "digits",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", PIXELS])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        producer_name="edgekit",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def _forward(
    w: Weights, images: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Values of the hidden layer [n, 32] and logits [n, 10]."""
    hidden = np.maximum(images @ w["fc1.weight"].T + w["fc1.bias"], 0)
    return hidden, hidden @ w["fc2.weight"].T + w["fc2.bias"]


def _gradients(w: Weights, samples: Samples) -> dict[str, NDArray[np.float32]]:
    """Gradients of the mean cross-entropy of softmax(logits)."""
    x, y = samples.images, samples.labels
    hidden, scores = _forward(w, x)
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    d_scores = odds / odds.sum(axis=1, keepdims=True)
    d_scores[np.arange(y.size), y] -= 1
    d_scores /= y.size
    d_hidden = (d_scores @ w["fc2.weight"]) * (hidden > 0)
    return {
        "fc1.weight": d_hidden.T @ x,
        "fc1.bias": d_hidden.sum(axis=0),
        "fc2.weight": d_scores.T @ hidden,
        "fc2.bias": d_scores.sum(axis=0),
    }
