"""What tests of the build start from: small real models on real digits, and a fixed stopwatch."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import profile
from edgekit.recipe import PassSpec, Recipe
from edgekit.signing import SigningKey
from edgekit_converters import source
from edgekit_converters.build import build
from edgekit_converters.cache import Cache
from edgekit_converters.demo import digits
from edgekit_converters.measure import Measurer, Timing
from edgekit_converters.report import BundleReport
from edgekit_converters.summary import Order
from edgekit_converters.trials import FLOAT
from edgekit_converters.workshop import Workshop
from edgekit_runtime.engines import Session, Tensors

SAMPLES = 160
CHANNELS = 16
KEY = SigningKey.generate()
STATIC = Recipe(passes=(PassSpec(name="static-int8"),))

# The generic profile of the machine that runs the tests: what is built for it runs there.
HERE = f"generic-{platform.machine()}"


class Stopwatch:
    """Takes the same time for every session that is not float, whatever it does.

    Args:
        speedup: how many times faster anything else is than float.
    """

    def __init__(self, *, speedup: float = 2.0, float_ms: float = 10.0) -> None:
        self._float_ms = float_ms
        self._other_ms = float_ms / speedup

    def measure(
        self,
        sessions: Mapping[str, Session],
        inputs: Tensors,
        *,
        quick: bool = False,
    ) -> dict[str, Timing]:
        for session in sessions.values():
            session.run(inputs)
        return {
            name: Timing(
                blocks_ms=((self._float_ms if name == FLOAT else self._other_ms,) * 4,) * 3
            )
            for name in sessions
        }


def images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Digits [n, 1, 8, 8] in 0..1 and what they show [n]."""
    samples = digits.load()
    pictures = samples.images[:SAMPLES].reshape(-1, 1, 8, 8)
    return pictures, samples.labels[:SAMPLES]


def convnet(*, opset: int = 17, ir: int = 8, batch: str | int = "N") -> onnx.ModelProto:
    """Convolution, ReLU, depthwise convolution, ReLU, and a head fitted to the digits.

    Input `image` [batch, 1, 8, 8], output `scores` [batch, 10]. The convolutions are random; the
    head is the least-squares solution, so the network is right on nearly every digit.
    """
    rng = np.random.default_rng(7)
    first = rng.standard_normal((CHANNELS, 1, 3, 3)).astype(np.float32) * 0.5
    second = rng.standard_normal((CHANNELS, 1, 3, 3)).astype(np.float32) * 0.5
    pictures, labels = images()
    features = _features(pictures, first, second)
    target = np.eye(10, dtype=np.float32)[labels]
    gram = features.T @ features + 0.1 * np.eye(features.shape[1], dtype=np.float32)
    head = np.linalg.solve(gram, features.T @ target).astype(np.float32)
    constants = {"first": first, "second": second, "head": head}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node(
            "Conv", ["b", "second"], ["c"], "conv2", pads=[1, 1, 1, 1], group=CHANNELS
        ),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten", axis=1),
        helper.make_node("MatMul", ["e", "head"], ["scores"], "matmul"),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "digits",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 10])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        ir_version=ir,
        opset_imports=[helper.make_opsetid("", opset)],
    )


def write_model(folder: Path, model: onnx.ModelProto | None = None, name: str = "digits") -> Path:
    """A model as a file; the convnet where none is given."""
    path = folder / f"{name}.onnx"
    path.write_bytes((model or convnet()).SerializeToString())
    return path


def write_data(folder: Path, **changes: NDArray[Any] | None) -> Path:
    """Digits as `.npz`; `changes` replace an array, or leave it out where they are None."""
    pictures, labels = images()
    arrays: dict[str, Any] = {"image": pictures, "labels": labels, **changes}
    path = folder / "data.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def build_for(
    name: str,
    model: Path,
    folder: Path,
    *,
    data: Path | None = None,
    recipe: Recipe | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    weights: Path | None = None,
    measurer: Measurer | None = None,
    cache: Cache | None = None,
) -> BundleReport:
    """Build for a shipped profile with a stopwatch that says twice as fast.

    Without a recipe static int8 alone is searched.
    """
    scratch, out = folder / "scratch", folder / "out"
    scratch.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    workshop = Workshop(
        source.read(model, weights=weights),
        recipe=recipe or STATIC,
        shapes=shapes or {},
        data=data,
        scratch=scratch,
        cache=cache or Cache(None),
    )
    order = Order(name="digits", version="1.0.0", key=KEY, out=out)
    return build(
        workshop,
        profile.find(name),
        order,
        measurer=measurer or Stopwatch(),
        say=lambda _: None,
    )


def _features(
    pictures: NDArray[np.float32], first: NDArray[np.float32], second: NDArray[np.float32]
) -> NDArray[np.float32]:
    hidden = np.maximum(_convolve(np.repeat(pictures, CHANNELS, axis=1), first[:, 0]), 0)
    return np.maximum(_convolve(hidden, second[:, 0]), 0).reshape(len(pictures), -1)


def _convolve(x: NDArray[np.float32], kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each channel of [n, c, h, w] with its own 3 x 3 kernel of [c, 3, 3], padded by one."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3)
    )
    convolved: NDArray[np.float32] = np.einsum("nchwij,cij->nchw", windows, kernels)
    return convolved
