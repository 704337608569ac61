"""Coverage: what rules say of small graphs, of any graph, and of real models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekit.errors import UsageError
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.targets import lists
from edgekit_converters.targets.coverage import coverage_of
from edgekit_converters.targets.lists import Bounds, Conditions, Rules, rules_of
from tests.converters.graph_models import Arrays, model, noise, normal_form

node = helper.make_node
_CONV_MACS = 4 * 3 * 9 * 8 * 8
_TAIL_MACS = 2 * 4 * 8 * 8


def rules(**changes: Any) -> Rules:
    """Rules that take convolutions and Relu."""
    base: dict[str, Any] = {
        "title": "Toy NPU",
        "version": "1",
        "sources": ("https://example.org",),
        "otherwise": "fallback",
        "dynamic": "refused",
        "operators": {"Conv": Conditions(), "Relu": Conditions()},
    }
    return Rules(**{**base, **changes})


def conv(name: str, source: str, made: str, weights: str = "w", **attributes: Any) -> Any:
    return node("Conv", [source, weights], [made], name, pads=[1, 1, 1, 1], **attributes)


def normal(
    nodes: Sequence[onnx.NodeProto], constants: Arrays | None = None, **options: Any
) -> onnx.ModelProto:
    return normal_form(model(nodes, constants or {}, **options)).model


def two_layers(middle: str) -> onnx.ModelProto:
    """A convolution, an element-wise operator, and a smaller convolution."""
    return normal(
        [
            conv("first", "x", "a"),
            node(middle, ["a"], ["b"], "middle"),
            node("Conv", ["b", "v"], ["y"], "last"),
        ],
        {"w": noise(4, 3, 3, 3), "v": noise(2, 4, 1, 1)},
        output=[1, 2, 8, 8],
    )


def test_a_model_of_taken_operators_lies_on_the_accelerator_whole() -> None:
    found = coverage_of(two_layers("Relu"), rules())

    assert not found.refused
    assert not found.fallback
    assert found.accelerator_macs == 1.0


def test_an_operator_that_is_not_in_the_list_falls_back_by_name() -> None:
    found = coverage_of(two_layers("Erf"), rules(instead={"Erf": "use Gelu"}))

    (finding,) = found.fallback
    assert (finding.node, finding.operator) == ("middle", "Erf")
    assert finding.reason == "not in the list of Toy NPU 1"
    assert finding.instead == "use Gelu"
    assert found.accelerator_macs == 1.0


def test_where_nothing_falls_back_an_unlisted_operator_refuses_the_model() -> None:
    found = coverage_of(two_layers("Erf"), rules(otherwise="refused"))

    assert [finding.node for finding in found.refused] == ["middle"]
    assert "another engine" in found.refused[0].instead


def test_an_operator_of_which_nothing_can_be_made_refuses_the_model_with_its_reason() -> None:
    found = coverage_of(two_layers("Erf"), rules(refused={"Erf": "has no int8 form"}))

    assert [finding.reason for finding in found.refused] == ["has no int8 form"]


def test_the_share_of_macs_counts_what_falls_back() -> None:
    small = rules(operators={"Conv": Conditions(attributes={"kernel_shape": Bounds(max=1)})})

    found = coverage_of(two_layers("Relu"), small.without("Relu"))

    assert found.accelerator_macs == pytest.approx(_TAIL_MACS / (_CONV_MACS + _TAIL_MACS))


def test_one_part_only_leaves_what_needs_the_cpu_to_the_cpu() -> None:
    found = coverage_of(two_layers("Erf"), rules(one_part=True))

    assert [finding.node for finding in found.fallback] == ["middle", "last"]
    assert "'middle'" in found.fallback[1].reason
    assert found.accelerator_macs == pytest.approx(_CONV_MACS / (_CONV_MACS + _TAIL_MACS))


def test_a_dynamic_input_is_refused_once_with_the_option_that_fixes_it() -> None:
    dynamic = normal(
        [conv("first", "x", "a"), node("Relu", ["a"], ["y"], "last")],
        {"w": noise(4, 3, 3, 3)},
        shape=["n", 3, "h", "w"],
        output=["n", 4, "h", "w"],
    )

    found = coverage_of(dynamic, rules())

    (finding,) = found.refused
    assert finding.node == "x"
    assert finding.reason == "dynamic shape [-1, 3, -1, -1]"
    assert finding.instead == "fix its sizes: --input x=1x3xSIZExSIZE"
    assert not found.fallback


def test_an_open_batch_is_no_dynamic_shape() -> None:
    batched = normal(
        [conv("first", "x", "y")],
        {"w": noise(4, 3, 3, 3)},
        shape=["n", 3, 8, 8],
        output=["n", 4, 8, 8],
    )

    assert coverage_of(batched, rules()).accelerator_macs == 1.0


def test_a_shape_that_depends_on_values_is_named_where_it_arises() -> None:
    counted = normal(
        [
            node("NonZero", ["x"], ["a"], "which"),
            node("Cast", ["a"], ["b"], "as_float", to=TensorProto.FLOAT),
            node("Relu", ["b"], ["y"], "last"),
        ],
        output=[4, "found"],
    )
    known = ("NonZero", "Cast", "Relu")

    found = coverage_of(counted, rules(operators=dict.fromkeys(known, Conditions())))

    assert [finding.node for finding in found.refused] == ["which"]
    assert "known only when it runs" in found.refused[0].reason


def test_what_depends_on_shapes_alone_is_not_judged() -> None:
    computed = model(
        [
            node("Shape", ["x"], ["s"], "shape"),
            node("Gather", ["s", "zero"], ["n"], "pick"),
            node("Concat", ["n", "rest"], ["to"], "join", axis=0),
            node("Reshape", ["x", "to"], ["y"], "reshape"),
        ],
        {"zero": np.array([0]), "rest": np.array([-1])},
        shape=[1, 3, 8, 8],
        output=[1, 192],
    )

    found = coverage_of(computed, rules(operators={"Reshape": Conditions()}))

    assert not found.refused
    assert not found.fallback


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        (Conditions(ranks=(3,)), "input of 4 axes, it takes 3"),
        (Conditions(types=("int8",)), "input of float32, it takes int8"),
        (
            Conditions(attributes={"kernel_shape": Bounds(max=2)}),
            "kernel_shape [3, 3], the most is 2",
        ),
        (
            Conditions(attributes={"kernel_shape": Bounds(max_product=4)}),
            "kernel_shape [3, 3], its product may be 4",
        ),
        (
            Conditions(attributes={"dilations": Bounds(equal=True)}),
            "dilations [1, 2], its values must be equal",
        ),
        (Conditions(attributes={"group": Bounds(values=(2, 4))}), "group 1, it takes 2 or 4"),
        (Conditions(attributes={"dilations": Bounds(min=2)}), "dilations [1, 2], the least is 2"),
        (Conditions(reads=1), "2 inputs, it takes up to 1"),
        (Conditions(scales=(2,)), "from [1, 3, 8, 8] to [1, 4, 8, 6], its scale must be 2"),
    ],
)
def test_a_condition_that_is_not_met_is_named(conditions: Conditions, reason: str) -> None:
    one = normal(
        [conv("only", "x", "y", dilations=[1, 2])],
        {"w": noise(4, 3, 3, 3)},
        output=[1, 4, 8, 6],
    )

    found = coverage_of(one, rules(operators={"Conv": conditions}))

    assert [finding.reason for finding in found.fallback] == [reason]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_rank": 3}, "tensor 'x' has 4 axes, the limit is 3"),
        ({"max_axis": 7}, "tensor 'x' [1, 3, 8, 8] has an axis above 7"),
        ({"max_inner_rank": 2}, "tensor 'x' [1, 3, 8, 8]: only its last 2 axes may be longer"),
        ({"types": ("int8",)}, "tensor 'x' of float32, it takes int8"),
        ({"max_tensor_bytes": 700}, "tensor 'x' of 0.0 MB, the limit is 0.0"),
    ],
)
def test_a_tensor_above_a_limit_is_named(limits: dict[str, Any], reason: str) -> None:
    one = normal([conv("only", "x", "y")], {"w": noise(4, 3, 3, 3)}, output=[1, 4, 8, 8])

    found = coverage_of(one, rules(**limits))

    assert found.fallback[0].reason.startswith(reason)


def test_a_tensor_is_as_large_as_the_accelerator_holds_it() -> None:
    one = normal([conv("only", "x", "y")], {"w": noise(4, 3, 3, 3)}, output=[1, 4, 8, 8])

    assert coverage_of(one, rules(max_tensor_bytes=256)).fallback
    assert not coverage_of(one, rules(max_tensor_bytes=256, activation_bits=8)).fallback


def test_weights_that_are_computed_are_named_where_constants_are_asked_for() -> None:
    computed = normal(
        [
            node("Sigmoid", ["x"], ["w"], "weights"),
            node("Conv", ["x", "w"], ["y"], "only"),
        ],
        output=[1, 1, 1, 1],
        shape=[1, 3, 8, 8],
    )

    found = coverage_of(
        computed, rules(operators={"Conv": Conditions(constant=(1,)), "Sigmoid": Conditions()})
    )

    assert found.fallback[0].reason == "input 1 ('w') is computed, it must be a constant"


_OPERATORS = ("Relu", "Sigmoid", "Tanh", "Erf", "Abs", "Neg", "Exp")


@given(
    chain=st.lists(st.sampled_from(_OPERATORS), min_size=1, max_size=8),
    taken=st.sets(st.sampled_from(_OPERATORS)),
    one_part=st.booleans(),
)
def test_every_node_is_taken_or_told_and_told_once(
    chain: list[str], taken: set[str], one_part: bool
) -> None:
    made = model([node(op, [f"t{i}"], [f"t{i + 1}"], f"n{i}") for i, op in enumerate(chain)], {})
    made.graph.node[0].input[0] = "x"
    made.graph.node[-1].output[0] = "y"
    given_rules = rules(operators=dict.fromkeys(taken, Conditions()), one_part=one_part)

    found = coverage_of(onnx.shape_inference.infer_shapes(made), given_rules)

    told = [finding.node for finding in found.fallback]
    first = next((i for i, op in enumerate(chain) if op not in taken), len(chain))
    expected = [
        f"n{i}" for i, op in enumerate(chain) if op not in taken or (one_part and i > first)
    ]
    assert told == expected
    assert all(finding.reason and finding.instead for finding in found.fallback)
    assert found.accelerator_macs == (None if told else 1.0)


@given(
    kernel=st.integers(1, 5),
    most=st.integers(1, 5),
    taken=st.sets(st.sampled_from(["Conv", "Relu"])),
)
def test_more_rules_never_take_more(kernel: int, most: int, taken: set[str]) -> None:
    made = normal(
        [
            node("Conv", ["x", "w"], ["a"], "first", auto_pad="SAME_UPPER"),
            node("Relu", ["a"], ["y"], "last"),
        ],
        {"w": noise(4, 3, kernel, kernel)},
        output=[1, 4, 8, 8],
    )
    loose = rules(operators=dict.fromkeys(taken, Conditions()))
    bound = Conditions(attributes={"kernel_shape": Bounds(max=most)})
    strict = msgspec.structs.replace(loose, operators=dict.fromkeys(taken, bound))

    free, bounded = coverage_of(made, loose), coverage_of(made, strict)

    assert {f.node for f in free.fallback} <= {f.node for f in bounded.fallback}
    assert (free.accelerator_macs or 0.0) >= (bounded.accelerator_macs or 0.0)
    assert (("first" in {f.node for f in bounded.fallback}) == ("Conv" not in taken)) or (
        kernel > most
    )


@pytest.mark.parametrize("name", lists.names())
def test_a_list_that_ships_is_valid_and_does_not_contradict_itself(name: str) -> None:
    found = rules_of(name)

    assert found.operators
    assert not set(found.operators) & {*found.refused, *found.never}
    assert all(source.startswith("https://") for source in found.sources)


def test_a_misspelt_condition_in_a_list_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(
        "title: Toy\nversion: '1'\nsources: [https://example.org]\notherwise: fallback\n"
        "dynamic: refused\noperators:\n  Conv: {rank: [4]}\n"
    )

    with pytest.raises(UsageError, match=r"rank.*operators"):
        lists.read(path)


@pytest.mark.parametrize("name", ["ethosu55", "ethosu85", "edgetpu", "hailo"])
def test_a_list_names_operators_that_onnx_has(name: str) -> None:
    found = rules_of(name)

    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert {*found.operators, *found.refused, *found.never, *found.instead} <= known


@pytest.mark.parametrize("name", ["ethosu55", "ethosu85", "edgetpu", "hailo"])
def test_a_convolutional_classifier_is_taken_whole(name: str, tmp_path: Path) -> None:
    write_lite0(tmp_path / "lite0.onnx")
    source = onnx.load_model(tmp_path / "lite0.onnx")

    found = coverage_of(normal_form(source).model, rules_of(name))

    assert found.accelerator_macs == 1.0
    assert not found.refused
