"""Fine-tunes of EfficientNet-Lite0 on the sample photographs, by its own training graph.

Plain SGD with momentum .9, one thread, batches drawn at random from 600 crops of 20 photographs.
- `head`: 60 steps of 16 crops at a learning rate of .003, the classifier's weight and bias alone.
- `all`: 60 steps of 16 crops at .001, every weight. The loss falls from .37 below .001 within 20.
- `hard`: no training: each weight of `all` moved by a normal of 2 % of its tensor's root mean
  square, which stands for a fine-tune that goes on far longer than a benchmark can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgekit import tensors
from edgekit_converters.autodiff import SGD, SoftmaxCrossEntropy, build_training

Weights = dict[str, NDArray[Any]]
HEAD = ("classifier.weight", "classifier.bias")
_HARD = 0.02


class Course(NamedTuple):
    """How to train."""

    steps: int
    batch: int
    learning_rate: float
    trainable: tuple[str, ...] | None


COURSES = {
    "head": Course(60, 16, 0.003, HEAD),
    "all": Course(60, 16, 0.001, None),
}


def write(folder: Path, model: Path, samples: Path) -> dict[str, Path]:
    """Weights of each fine-tune, as files that `edgekit build --weights` takes; made once."""
    files = {name: folder / f"{name}.safetensors" for name in (*COURSES, "hard")}
    for name, course in COURSES.items():
        if not files[name].exists():
            trained = train(onnx.load(model), course, np.load(samples))
            files[name].write_bytes(tensors.encode(trained))
    if not files["hard"].exists():
        moved = shaken(tensors.decode(files["all"].read_bytes(), what="all"))
        files["hard"].write_bytes(tensors.encode(moved))
    return files


def train(model: onnx.ModelProto, course: Course, samples: Any) -> Weights:
    """Weights after a course."""
    graphs = build_training(
        model,
        loss=SoftmaxCrossEntropy(),
        optimiser=SGD(momentum=0.9),
        trainable=course.trainable,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graphs.train.SerializeToString(), options)
    outputs = [output.name for output in session.get_outputs()]
    weights: Weights = dict(graphs.parameters)
    states = {
        value.name: np.zeros(value.shape, np.float32)
        for value in session.get_inputs()
        if value.name.startswith("state/")
    }
    random = np.random.default_rng(0)
    images, labels = samples["input"], samples["labels"].astype(np.int64)
    for step in range(course.steps):
        which = random.choice(len(images), course.batch, replace=False)
        feed = {
            "input": images[which],
            "labels": labels[which],
            "learning_rate": np.array(course.learning_rate, np.float32),
        }
        found = dict(zip(outputs, session.run(None, {**feed, **weights, **states}), strict=True))
        weights = {name: found[f"updated/{name}"] for name in weights}
        states = {name: found[f"updated/{name}"] for name in states}
        if step % 10 == 0:
            print(f"step {step:3} of {course.steps}: loss {float(found['loss']):.4f}")
    return weights


def shaken(weights: Weights) -> Weights:
    """Each weight moved by a normal of `_HARD` of its tensor's root mean square."""
    random = np.random.default_rng(1)
    moved = {}
    for name, values in weights.items():
        spread = _HARD * np.sqrt(np.mean(np.square(values)))
        moved[name] = (values + random.normal(0, 1, values.shape) * spread).astype(np.float32)
    return moved


def change(before: Weights, after: Weights) -> float:
    """How far weights moved, as a share of their length: over all of those in `after`."""
    moved = sum(float(np.square(after[name] - before[name]).sum()) for name in after)
    length = sum(float(np.square(before[name]).sum()) for name in after)
    return float(np.sqrt(moved / length))
