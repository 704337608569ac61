"""What a trainable bundle carries below `training/`, and how its graphs are fed.

A training step is an ordinary ONNX graph: weights, optimiser state and a batch go in, the loss and
the updated weights and state come out. The names below are the whole interface between the build
that makes the graphs and the board that runs them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgekit.structs import Strict

TRAIN = "training/train.onnx"
EVALUATE = "training/evaluate.onnx"
PARAMETERS = "training/parameters.safetensors"
SPEC = "training/spec.json"

UPDATED = "updated/"
STATE = "state/"


class TrainingSpec(Strict, frozen=True, kw_only=True):
    """`training/spec.json`.

    Attributes:
        inputs: the model's inputs, fed with a batch each; axis 0 counts samples.
        labels: the input that takes the labels of the batch.
        learning_rate: the input that takes the learning rate, a 0-d float32 array.
        parameters: weights: inputs under these names; outputs under `updated/NAME`.
        states: optimiser state: inputs under these names (`state/…`), outputs under
            `updated/state/…`; each begins as zeros in the shape given here.
        loss: which loss the graph computes; output `loss`, a float32 scalar.
    """

    inputs: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    labels: str = "labels"
    learning_rate: str = "learning_rate"
    parameters: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    states: dict[str, tuple[int, ...]] = {}
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
