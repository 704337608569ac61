"""Reverse-mode differentiation over ONNX: from a trained model to a training step.

The step is an ordinary ONNX graph; a board needs nothing but onnxruntime to run it.
"""

from edgekit_converters.autodiff.losses import Loss, MeanSquaredError, SoftmaxCrossEntropy
from edgekit_converters.autodiff.optimisers import SGD, Adam, Optimiser
from edgekit_converters.autodiff.train_step import TrainingGraphs, build_training

__all__ = [
    "SGD",
    "Adam",
    "Loss",
    "MeanSquaredError",
    "Optimiser",
    "SoftmaxCrossEntropy",
    "TrainingGraphs",
    "build_training",
]
