"""Train: the `training/` entries of a bundle, made from the float model where the recipe asks.

Weights keep the names of the source's initialisers, so that a round's weights can come back to a
build under them (`--weights`).
"""

from __future__ import annotations

from edgekit import tensors, training
from edgekit.errors import BuildError
from edgekit.manifest import canonical
from edgekit.recipe import Training
from edgekit.training import TrainingSpec
from edgekit_converters.autodiff import (
    SGD,
    Loss,
    MeanSquaredError,
    SoftmaxCrossEntropy,
    build_training,
)
from edgekit_converters.autodiff.losses import LABELS
from edgekit_converters.autodiff.optimisers import LEARNING_RATE
from edgekit_converters.normalise import fixed, serialise
from edgekit_converters.source import OnnxSource
from edgekit_converters.workshop import Workshop


def entries(workshop: Workshop) -> dict[str, bytes]:
    """Train-step and evaluation graph, first weights and their description; empty without a recipe.

    Raises:
        BuildError: the source is not ONNX.
        ModelError: the model cannot be differentiated; the message names the operator.
    """
    wanted = workshop.recipe.training
    if wanted is None:
        return {}
    source = workshop.source
    if not isinstance(source, OnnxSource):
        raise BuildError(
            "only ONNX models can be made trainable, the source is TFLite",
            hint="build from the ONNX model, or take training out of the recipe",
        )
    graphs = build_training(
        fixed(source.model, workshop.shapes, workshop.recipe.constants),
        loss=_loss(wanted),
        optimiser=SGD(momentum=wanted.momentum),
        trainable=wanted.trainable,
    )
    states = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in graphs.train.graph.input
        if value.name.startswith(training.STATE)
    }
    spec = TrainingSpec(
        inputs=tuple(spec.name for spec in workshop.inputs),
        labels=LABELS,
        learning_rate=LEARNING_RATE,
        parameters=tuple(graphs.parameters),
        states=states,
        loss=wanted.loss,
    )
    return {
        training.TRAIN: serialise(graphs.train),
        training.EVALUATE: serialise(graphs.evaluate),
        training.PARAMETERS: tensors.encode(graphs.parameters),
        training.SPEC: canonical(spec),
    }


def _loss(wanted: Training) -> Loss:
    return SoftmaxCrossEntropy() if wanted.loss == "cross_entropy" else MeanSquaredError()
