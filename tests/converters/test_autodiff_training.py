"""Training steps as a device runs them: plain onnxruntime, float32, names from the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser
from sklearn.datasets import load_digits

from edgekit.errors import ModelError
from edgekit_converters.autodiff import (
    SGD,
    Adam,
    MeanSquaredError,
    Optimiser,
    TrainingGraphs,
    build_training,
)
from tests.converters.autodiff_models import build, convnet, mlp, names, parse, session

Arrays = dict[str, NDArray[Any]]


def test_the_names_of_inputs_and_outputs_are_those_of_the_contract() -> None:
    made = build(mlp(), optimiser=SGD(momentum=0.9))

    weights = ["w1", "b1", "w2", "b2"]
    states = [f"state/momentum/{name}" for name in weights]
    assert names(made.train.graph.input) == [
        "pixels", "labels", "learning_rate", *weights, *states
    ]  # fmt: skip
    assert names(made.train.graph.output) == [
        "loss", *(f"updated/{name}" for name in [*weights, *states])
    ]  # fmt: skip
    assert names(made.evaluate.graph.input) == ["pixels", "labels", *weights]
    assert names(made.evaluate.graph.output) == ["loss", "correct"]
    assert list(made.parameters) == weights


def test_adam_keeps_two_moments_for_each_weight_and_one_count() -> None:
    made = build(mlp(), optimiser=Adam(), trainable=["w2", "b2"])

    assert names(made.train.graph.input)[-5:] == [
        "state/step",
        "state/first_moment/w2",
        "state/second_moment/w2",
        "state/first_moment/b2",
        "state/second_moment/b2",
    ]


def test_an_mlp_learns_to_read_digits() -> None:
    digits = load_digits()
    pixels: NDArray[Any] = (digits.data / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    made = build(mlp(hidden=32), optimiser=SGD(momentum=0.9, weight_decay=1e-4))
    train, evaluate = session(made.train), session(made.evaluate)
    kept = starting_point(made, train)
    order = np.random.default_rng(0)
    for _ in range(12):
        for batch in np.array_split(order.permutation(1400), 44):
            rate = np.array(0.1, np.float32)
            fed = {"pixels": pixels[batch], "labels": labels[batch], "learning_rate": rate}
            kept, _ = step(train, kept, fed)

    weights = {name: kept[name] for name in made.parameters}
    held_out = {"pixels": pixels[1400:], "labels": labels[1400:], **weights}
    loss, correct = evaluate.run(["loss", "correct"], held_out)

    assert correct / len(pixels[1400:]) > 0.9
    assert loss < 0.5
    assert loss.shape == correct.shape == ()
    assert correct.dtype == np.int64


@settings(deadline=None, max_examples=20)
@given(batch=st.integers(1, 9), hidden=st.integers(1, 8), seed=st.integers(0, 999))
def test_a_step_on_an_mlp_equals_one_written_by_hand(batch: int, hidden: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(batch, 64)), rng.integers(0, 10, batch)
    model = mlp(hidden=hidden)
    loss, gradients = mlp_gradients(weights_of(model), x, labels)
    made = build(model, optimiser=SGD())
    train = session(made.train)

    rate = np.array(1, np.float32)
    fed: Arrays = {"pixels": x.astype(np.float32), "labels": labels, "learning_rate": rate}
    after, value = step(train, made.parameters, fed)

    np.testing.assert_allclose(value, loss, rtol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(made.parameters[name] - after[name], gradient, atol=2e-6)


def test_momentum_and_weight_decay_follow_their_formula() -> None:
    made, train, fed = regression(SGD(momentum=0.8, weight_decay=0.1))
    kept = starting_point(made, train)
    w = made.parameters["w"].astype(np.float64)
    m = np.zeros_like(w)
    for _ in range(4):
        m = 0.8 * m + regression_gradient(w, fed) + 0.1 * w
        w = w - 0.05 * m
        kept, _ = step(train, kept, {**fed, "learning_rate": np.array(0.05, np.float32)})

    np.testing.assert_allclose(kept["w"], w, rtol=1e-5)
    np.testing.assert_allclose(kept["state/momentum/w"], m, rtol=1e-5)


def test_adam_follows_the_algorithm_of_its_paper() -> None:
    made, train, fed = regression(Adam(beta1=0.8, beta2=0.9, epsilon=1e-6))
    kept = starting_point(made, train)
    w = made.parameters["w"].astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, 6):
        g = regression_gradient(w, fed)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        w = w - 0.05 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
        kept, _ = step(train, kept, {**fed, "learning_rate": np.array(0.05, np.float32)})

    np.testing.assert_allclose(kept["w"], w, rtol=1e-4)
    assert kept["state/step"] == 5


def test_huge_logits_give_a_finite_loss_and_step() -> None:
    made = build(mlp(), optimiser=SGD())
    fed = {"pixels": np.full((2, 64), 1e6, np.float32), "labels": np.array([0, 1])}

    after, loss = step(
        session(made.train), made.parameters, {**fed, "learning_rate": np.array(0.1, np.float32)}
    )

    assert np.isfinite(loss)
    assert all(np.isfinite(after[name]).all() for name in made.parameters)


@pytest.mark.parametrize("ending", ["Softmax", "LogSoftmax", "Softmax, Identity"])
def test_a_model_that_ends_in_a_softmax_is_trained_through_its_logits(ending: str) -> None:
    plain, ended = build(mlp(), optimiser=SGD()), build(mlp(ending=ending), optimiser=SGD())

    assert [n.op_type for n in ended.train.graph.node] == [
        n.op_type for n in plain.train.graph.node
    ]


def test_a_softmax_over_the_batch_is_part_of_the_model() -> None:
    model = mlp(ending="Softmax")
    model.graph.node[-1].attribute.append(helper.make_attribute("axis", 0))

    made = build(model, optimiser=SGD())

    assert "Softmax" in [node.op_type for node in made.train.graph.node]


def test_names_that_a_model_took_already_are_not_given_again() -> None:
    model = mlp()
    taken = "training/constant_0"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = taken

    made = build(model, optimiser=SGD())

    assert taken not in names(made.train.graph.initializer)


def test_only_the_named_weights_are_trained_and_the_others_stay_in_the_graph() -> None:
    made = build(mlp(), optimiser=SGD(), trainable=["b2", "w2"])

    assert list(made.parameters) == ["w2", "b2"]
    assert {"w1", "b1"} <= {c.name for c in made.train.graph.initializer}
    assert not {"w2", "b2"} & {c.name for c in made.train.graph.initializer}


def test_the_train_graph_carries_no_trainable_weights() -> None:
    made = build(mlp(hidden=512), optimiser=SGD(momentum=0.9))

    assert made.train.ByteSize() < 6_000


def test_a_convolutional_network_is_trained_from_end_to_end() -> None:
    made = build(convnet(), optimiser=SGD(momentum=0.9))
    train = session(made.train)
    kept = starting_point(made, train)
    digits = load_digits()
    fed = {
        "image": (digits.images[:64, None] / 16).astype(np.float32),
        "labels": digits.target[:64].astype(np.int64),
        "learning_rate": np.array(0.2, np.float32),
    }
    losses = []
    for _ in range(150):
        kept, loss = step(train, kept, fed)
        losses.append(loss)

    assert losses[-1] < losses[0] / 2


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (build(convnet(), optimiser=Adam()) for _ in range(2))

    assert serialised(first.train) == serialised(second.train)
    assert serialised(first.evaluate) == serialised(second.evaluate)


def test_the_model_passed_in_is_not_changed() -> None:
    model = mlp(batch="1")
    before = serialised(model)

    build(model, optimiser=SGD())

    assert serialised(model) == before


def test_a_model_exported_for_one_sample_is_trained_on_many() -> None:
    made = build(mlp(batch="1"), optimiser=SGD())

    fed = {"pixels": np.zeros((5, 64), np.float32), "labels": np.zeros(5, np.int64)}
    session(made.evaluate).run(None, {**fed, **made.parameters})

    assert made.train.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize(
    ("opset", "expected", "ir_version"),
    [(7, 17, 8), (11, 17, 8), (13, 17, 8), (17, 17, 8), (18, 18, 8), (20, 20, 9), (22, 22, 10)],
)
def test_the_opset_is_raised_to_17_and_else_kept(
    opset: int, expected: int, ir_version: int
) -> None:
    made = build(mlp(opset=opset), optimiser=SGD())
    reference = build(mlp(), optimiser=SGD())
    rng = np.random.default_rng(0)
    fed = {
        "pixels": rng.normal(size=(3, 64)).astype(np.float32),
        "labels": np.array([3, 1, 4]),
        "learning_rate": np.array(1, np.float32),
    }

    after, _ = step(session(made.train), made.parameters, fed)
    wanted, _ = step(session(reference.train), reference.parameters, fed)

    assert made.train.opset_import[0].version == expected
    assert made.train.ir_version == ir_version
    for name, value in wanted.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-6)


def test_functions_inside_a_model_are_written_out() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        { y = local.dense(x, w) }
        <domain: "local", opset_import: ["": 17]>
        dense (a, b) => (c) { d = MatMul(a, b) c = Relu(d) }"""
    )

    assert list(build(model, optimiser=SGD()).parameters) == ["w"]


def test_settings_and_shapes_are_not_taken_for_weights() -> None:
    model = parse(
        "float[N, 4] x",
        "float[2, 2] w = {1, 2, 3, 4}, float eps = {0.1}, int64[2] shape = {-1, 2}",
        "a = Reshape(x, shape)  b = MatMul(a, w)  y = Add(b, eps)",
    )

    assert list(build(model, optimiser=SGD()).parameters) == ["w"]


def test_one_of_several_outputs_can_be_chosen() -> None:
    model = mlp()
    model.graph.output.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["N", 16]))

    with pytest.raises(ModelError, match="several outputs: scores, hidden"):
        build(model, optimiser=SGD())
    made = build(model, optimiser=SGD(), output="hidden")
    with pytest.raises(ModelError, match="no output 'absent'"):
        build(model, optimiser=SGD(), output="absent")

    assert list(made.parameters) == ["w1", "b1"]


def regression(
    optimiser: Optimiser,
) -> tuple[TrainingGraphs, onnxruntime.InferenceSession, Arrays]:
    model = parse("float[N, 3] x", "float[3, 2] w = {1, -2, 3, 0.5, 0.1, 1}", "y = MatMul(x, w)")
    made = build_training(model, loss=MeanSquaredError(), optimiser=optimiser)
    rng = np.random.default_rng(0)
    fed = {"x": rng.normal(size=(6, 3)), "labels": rng.normal(size=(6, 2))}
    single = {name: value.astype(np.float32) for name, value in fed.items()}
    return made, session(made.train), single


def regression_gradient(w: NDArray[Any], fed: Arrays) -> NDArray[Any]:
    miss = fed["x"] @ w - fed["labels"]
    gradient: NDArray[Any] = 2 * fed["x"].T @ miss / miss.size
    return gradient


def mlp_gradients(weights: Arrays, x: NDArray[Any], labels: NDArray[Any]) -> tuple[float, Arrays]:
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    hidden = np.maximum(x @ w["w1"].T + w["b1"], 0)
    logits = hidden @ w["w2"] + w["b2"]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(x))
    by_logits = np.exp(log_p)
    by_logits[rows, labels] -= 1
    by_logits /= len(x)
    by_hidden = (by_logits @ w["w2"].T) * (hidden > 0)
    gradients = {
        "w1": by_hidden.T @ x,
        "b1": by_hidden.sum(axis=0),
        "w2": hidden.T @ by_logits,
        "b2": by_logits.sum(axis=0),
    }
    return -float(log_p[rows, labels].mean()), gradients


def starting_point(made: TrainingGraphs, train: onnxruntime.InferenceSession) -> Arrays:
    """Take the first weights as they are, and make the first states from their declared shapes."""
    states = [i for i in train.get_inputs() if i.name.startswith("state/")]
    return {**made.parameters, **{s.name: np.zeros(s.shape, np.float32) for s in states}}


def step(
    train: onnxruntime.InferenceSession, kept: Arrays, fed: Mapping[str, NDArray[Any]]
) -> tuple[Arrays, NDArray[Any]]:
    """Run one step and return the next weights and states, and the loss."""
    outputs = [output.name for output in train.get_outputs()]
    loss, *values = train.run(outputs, {**fed, **kept})
    after = {name.removeprefix("updated/"): v for name, v in zip(outputs[1:], values, strict=True)}
    return after, loss


def weights_of(model: onnx.ModelProto) -> Arrays:
    return {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}


def serialised(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data
