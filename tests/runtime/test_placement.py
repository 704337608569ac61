"""Placement: what an engine reports, and the contract that it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import PlacementBroken
from edgekit.manifest import Golden, Needs, TensorSpec, Variant, canonical
from edgekit.profile import Accelerator, Placement
from edgekit_converters import macs
from edgekit_runtime import placement
from edgekit_runtime.engines import ENGINES, Session, onnx_placement
from edgekit_runtime.engines.placed import Node, Placed, of_nodes, on_accelerator, on_cpu
from edgekit_runtime.engines.tflite_placement import taken_by
from tests.runtime.delegate import build, needs_compiler
from tests.runtime.onnx_models import OnnxModels
from tests.runtime.tflite_models import chain, sums
from tests.strategies import placements

nodes = st.builds(
    Node,
    operator=st.sampled_from(["Conv", "Relu", "Softmax", "MatMul"]),
    accelerated=st.booleans(),
    macs=st.none() | st.integers(0, 10**12),
)


def variant(contract: Placement, *, accelerator: Accelerator = "npu", **options: Any) -> Variant:
    return Variant(
        name="fast",
        artifact="artifacts/fast.tflite",
        engine="litert",
        accelerator=accelerator,
        precision="fp32",
        options=options,
        needs=Needs(memory_mb=1),
        placement=contract,
        golden=Golden(reference_atol=1.0),
    )


@pytest.fixture(scope="module")
def delegate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("delegate"))


def opened(folder: Path, model: bytes, delegate: Path, **options: Any) -> Session:
    path = folder / "model.tflite"
    path.write_bytes(model)
    given = {"delegates": [{"name": str(delegate), "options": options}]}
    return ENGINES.get("litert").open(path, options=given)


@given(st.lists(nodes, max_size=12))
def test_a_share_is_one_of_what_was_counted(graph: list[Node]) -> None:
    placed = of_nodes(graph, source="a test")
    left = [node for node in graph if not node.accelerated]

    assert placed.fallback_ops == tuple(sorted({node.operator for node in left}))
    if len(left) == len(graph):
        assert placed.share == 0
    if graph and not left:
        assert (placed.share, placed.unit) == (1.0, "macs")
    if placed.unit == "macs" and 0 < placed.share < 1:
        total = sum(node.macs or 0 for node in graph)
        on_cpu_macs = sum(node.macs or 0 for node in left)
        assert placed.share == pytest.approx((total - on_cpu_macs) / total)
    if placed.unit == "nodes":
        assert any(node.macs is None for node in graph)


@given(st.lists(nodes, min_size=1, max_size=12), st.data())
def test_moving_a_node_to_the_cpu_never_raises_the_share(
    graph: list[Node], data: st.DataObject
) -> None:
    which = data.draw(st.integers(0, len(graph) - 1))
    moved = [*graph]
    moved[which] = msgspec.structs.replace(graph[which], accelerated=False)

    before, after = of_nodes(graph, source="a"), of_nodes(moved, source="a")

    assert after.share <= before.share or after.unit != before.unit


@given(placements, st.floats(0, 1), st.lists(st.sampled_from(["Softmax", "Resize", "Conv"])))
def test_a_contract_is_held_or_what_breaks_it_is_told(
    contract: Placement, share: float, left: list[str]
) -> None:
    placed = Placed(share=share, unit="macs", fallback_ops=tuple(left), source="a test")

    told = placement.problems(placed, contract, accelerator="npu")

    strange = set(left) - set(contract.fallback_ops)
    below = share < contract.min_accelerator_macs - 1e-9
    assert bool(told) == (bool(strange) or below)
    assert all(any(name in text for text in told) for name in strange)


def test_a_share_by_nodes_is_not_held_against_a_floor_of_macs() -> None:
    placed = Placed(share=0.5, unit="nodes", fallback_ops=("Conv",), source="a test")
    contract = Placement(min_accelerator_macs=0.9, fallback_ops=("Conv",))

    assert placement.problems(placed, contract, accelerator="npu") == ()


def test_almost_all_is_never_shown_as_all() -> None:
    placed = Placed(share=0.9999, unit="macs", source="a test")

    (told,) = placement.problems(placed, Placement(), accelerator="npu")

    assert told == "0.99 of the MACs run on the npu, the manifest asks for 1.00"


@needs_compiler
class TestVerify:
    """With a delegate that takes additions."""

    def test_a_model_that_is_all_there_is_taken(self, tmp_path: Path, delegate: Path) -> None:
        session = opened(tmp_path, chain(3), delegate)

        placed = placement.verify(variant(Placement()), session, alarm=pytest.fail)

        assert placed is not None
        assert placed.share == 1

    def test_a_silent_fallback_is_refused_and_named(self, tmp_path: Path, delegate: Path) -> None:
        session = opened(tmp_path, sums(), delegate)

        with pytest.raises(PlacementBroken, match=r"FULLY_CONNECTED, RELU run on the CPU") as e:
            placement.verify(variant(Placement()), session, alarm=pytest.fail)
        assert "0.00 of the MACs run on the npu" in e.value.message
        assert "on_fallback: alarm" in (e.value.hint or "")

    def test_a_fallback_that_the_manifest_names_is_taken(
        self, tmp_path: Path, delegate: Path
    ) -> None:
        allowed = Placement(min_accelerator_macs=0, fallback_ops=("FULLY_CONNECTED", "RELU"))
        session = opened(tmp_path, sums(), delegate)

        assert placement.verify(variant(allowed), session, alarm=pytest.fail) is not None

    def test_where_the_manifest_says_alarm_it_is_served_with_one(
        self, tmp_path: Path, delegate: Path
    ) -> None:
        alarms: list[str] = []
        session = opened(tmp_path, sums(), delegate, at_most=1)

        placed = placement.verify(
            variant(Placement(on_fallback="alarm")), session, alarm=alarms.append
        )

        assert placed is not None
        assert "ADD, FULLY_CONNECTED, RELU run on the CPU" in alarms[0]


def test_a_variant_of_the_cpu_has_nothing_to_break(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(sums())
    session = ENGINES.get("litert").open(path, options={})
    contract = variant(Placement(), accelerator="cpu")

    assert placement.verify(contract, session, alarm=pytest.fail) is None


def test_a_variant_of_an_npu_that_asked_for_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(sums())
    session = ENGINES.get("litert").open(path, options={})

    with pytest.raises(PlacementBroken, match=r"0\.00 of the MACs.*no accelerator was asked for"):
        placement.verify(variant(Placement()), session, alarm=pytest.fail)


def test_refusing_is_left_out_of_a_manifest_so_that_older_readers_take_it() -> None:
    assert b"on_fallback" not in canonical(Placement())
    assert b'"on_fallback":"alarm"' in canonical(Placement(on_fallback="alarm"))


def test_a_contract_with_another_word_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="on_fallback"):
        msgspec.json.decode(b'{"on_fallback": "ignore"}', type=Placement)


def steps(*pairs: tuple[Sequence[int], Sequence[int]]) -> list[dict[str, Any]]:
    return [{"inputs": list(reads), "outputs": list(makes)} for reads, makes in pairs]


def test_what_lies_between_a_kernels_tensors_is_taken() -> None:
    own = steps(([0, 9], [1]), ([1], [2]), ([1, 2], [3]), ([3], [4]))

    assert taken_by(own, steps(([1], [3]))) == {1, 2}
    assert taken_by(own, steps(([0, 9], [1]), ([3], [4]))) == {0, 3}
    assert taken_by(own, []) == set()


def test_a_profile_of_an_older_onnxruntime_names_each_kernels_provider() -> None:
    def event(name: str, provider: str) -> dict[str, Any]:
        args = {"op_name": name, "provider": provider}
        return {"cat": "Node", "name": f"{name}_0_kernel_time", "args": args}

    events = [
        {"cat": "Session", "name": "model_loading_uri"},
        event("MemcpyFromHost", "CUDAExecutionProvider"),
        event("Conv", "CUDAExecutionProvider"),
        event("Softmax", "CPUExecutionProvider"),
    ]

    placed = onnx_placement.from_profile(msgspec.json.encode(events))

    assert (placed.share, placed.unit, placed.fallback_ops) == (1.0, "macs", ("Softmax",))


def test_a_run_with_zeros_is_profiled_where_nothing_is_recorded(tmp_path: Path) -> None:
    path = OnnxModels().relu(tmp_path)
    settings = onnxruntime.SessionOptions()
    profile = onnx_placement.Profile(settings)
    session = onnxruntime.InferenceSession(str(path), settings)
    x = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))

    placed = profile.placed(session, [x])

    assert placed is not None
    assert (placed.share, placed.fallback_ops) == (0.0, ("Relu",))


def test_what_cannot_be_run_with_zeros_is_not_told(tmp_path: Path) -> None:
    path = OnnxModels().relu(tmp_path)
    settings = onnxruntime.SessionOptions()
    profile = onnx_placement.Profile(settings)
    session = onnxruntime.InferenceSession(str(path), settings)
    wrong = TensorSpec(name="x", datatype="FP32", shape=(-1, 5))

    assert profile.placed(session, [wrong]) is None


def test_an_engine_counts_as_multiplying_what_a_build_counts() -> None:
    assert macs.COUNTED <= onnx_placement.MULTIPLYING


def test_both_ends_are_what_they_say() -> None:
    assert (on_cpu().share, on_accelerator().share) == (0.0, 1.0)
    assert str(on_accelerator()).startswith("1 of macs on the accelerator")
