"""What cannot be trained is refused with a message that says what and where."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edgekit.errors import ModelError, UsageError
from edgekit_converters.autodiff import SGD, Adam
from tests.converters.autodiff_models import build, convnet, mlp, parse, session


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_makes_the_run_fail(label: int) -> None:
    made = build(mlp(), optimiser=SGD())
    fed = {"pixels": np.zeros((1, 64), np.float32), "labels": np.array([label])}

    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="range"):
        session(made.evaluate).run(None, {**fed, **made.parameters})


def test_an_operator_without_a_gradient_is_named_with_its_node() -> None:
    model = parse("float[N, 2] x", "float[2, 2] w = {1, 2, 3, 4}", "a = MatMul(x, w)  y = Round(a)")
    model.graph.node[1].name = "rounder"

    with pytest.raises(
        ModelError, match=r"operator Round \(node 'rounder'\).* no gradient"
    ) as caught:
        build(model, optimiser=SGD())

    assert caught.value.hint is not None


def test_an_operator_without_a_gradient_before_every_weight_does_no_harm() -> None:
    model = parse("float[N, 2] x", "float[2, 2] w = {1, 2, 3, 4}", "a = Round(x)  y = MatMul(a, w)")

    assert list(build(model, optimiser=SGD()).parameters) == ["w"]


def test_a_weight_hidden_in_a_branch_is_not_silently_frozen() -> None:
    model = parse(
        "float[N, 2] x, bool c",
        "float[2] w = {1, 2}",
        "y = If (c) <then_branch = t () => (float[N, 2] z) { z = Add(x, w) }, "
        "else_branch = e () => (float[N, 2] z) { z = Sub(x, w) }>",
    )

    with pytest.raises(ModelError, match="operator If"):
        build(model, optimiser=SGD())


def test_an_operator_of_another_domain_has_no_gradient() -> None:
    model = parse("float[N, 2] x", "float[2, 2] w = {1, 2, 3, 4}", "a = MatMul(x, w)  y = Relu(a)")
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))

    with pytest.raises(ModelError, match=r"operator com\.example\.Relu"):
        build(model, optimiser=SGD())


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        (["w1", "absent"], "'absent' is no initialiser"),
        (["pixels"], "'pixels' is no initialiser"),
        (["steps"], "'steps' is int64"),
        (["spare"], "'spare' does not influence the loss"),
        ([], "no weight is named"),
    ],
)
def test_a_name_that_cannot_be_trained_is_refused(trainable: list[str], message: str) -> None:
    model = mlp()
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "steps"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "spare"))

    with pytest.raises(ModelError, match=message):
        build(model, optimiser=SGD(), trainable=trainable)


@pytest.mark.parametrize("name", ["labels", "learning_rate", "loss", "state/w", "updated/w"])
def test_a_tensor_with_a_name_of_the_contract_is_refused(name: str) -> None:
    model = mlp()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = name

    with pytest.raises(ModelError, match=name):
        build(model, optimiser=SGD())


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing can be trained"):
        build(parse("float[N, 2] x", "int64 a = {1}", "y = Relu(x)"), optimiser=SGD())


def test_a_batch_that_is_fixed_inside_the_model_is_refused() -> None:
    model = parse(
        "float[1, 4] x",
        "float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, int64[2] shape = {1, 4}",
        "a = Reshape(x, shape)  y = MatMul(a, w)",
    )

    with pytest.raises(ModelError, match="batch of 1"):
        build(model, optimiser=SGD())


def test_a_convolution_over_a_size_that_is_not_known_is_refused() -> None:
    model = convnet()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"

    with pytest.raises(ModelError, match="needs numbers"):
        build(model, optimiser=SGD())


def test_scores_that_are_no_matrix_have_no_cross_entropy() -> None:
    model = parse("float[N, 2] x", "float[2] w = {1, 2}", "y = MatMul(x, w)", output="float[N] y")

    with pytest.raises(ModelError, match=r"\[batch, classes\]"):
        build(model, optimiser=SGD())


def test_an_opset_from_the_future_is_refused() -> None:
    with pytest.raises(ModelError, match="opset 23"):
        build(mlp(opset=23), optimiser=SGD())


def test_an_invalid_model_is_refused() -> None:
    model = mlp()
    model.graph.node[0].input[0] = "nowhere"

    with pytest.raises(ModelError):
        build(model, optimiser=SGD())


def test_sparse_weights_are_refused() -> None:
    model = mlp()
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    sparse = helper.make_sparse_tensor(values, places, [4])
    model.graph.sparse_initializer.append(sparse)

    with pytest.raises(ModelError, match="sparse"):
        build(model, optimiser=SGD())


def test_weights_in_another_file_are_asked_for() -> None:
    model = mlp()
    weight = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, "weights.bin")
    weight.ClearField("raw_data")

    with pytest.raises(ModelError, match="another file"):
        build(model, optimiser=SGD())


@pytest.mark.parametrize(
    "options", [{"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}], ids=str
)
def test_an_sgd_that_cannot_work_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        SGD(**options)


@pytest.mark.parametrize("options", [{"beta1": 1.0}, {"beta2": -0.1}, {"epsilon": 0.0}], ids=str)
def test_an_adam_that_cannot_work_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Adam(**options)
