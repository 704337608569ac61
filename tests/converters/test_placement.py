"""What must run on an accelerator, and which engines of a board a build is for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgekit import profile
from edgekit.errors import UsageError
from edgekit.profile import DeviceProfile, EngineSpec, Placement
from edgekit_converters.build import chosen
from edgekit_converters.placement import (
    contract,
    coverage_problems,
    floor_of,
    problems,
    unknown,
)
from edgekit_converters.targets import Coverage, Finding, Found

NPU = EngineSpec(name="litert", version="2.3", accelerator="npu", precisions=("int8",))
CPU = EngineSpec(name="onnxruntime", version="1.31")
SHARES = st.floats(min_value=0, max_value=1)
SOFTMAX = Finding(
    node="head", operator="Softmax", reason="has no int8 form", instead="leave it out"
)


def found(share: float | None, *operators: str) -> Found:
    return Found(accelerator_macs=share, fallback_ops=operators, evidence="estimated")


@given(share=SHARES, floor=SHARES)
def test_an_artefact_is_refused_exactly_below_the_floor(share: float, floor: float) -> None:
    asked = Placement(min_accelerator_macs=floor)
    assert bool(problems(found(share), asked, NPU)) == (share < floor)


@given(share=SHARES)
def test_what_runs_on_a_cpu_has_no_floor(share: float) -> None:
    assert problems(found(share), Placement(min_accelerator_macs=1.0), CPU) == ()


def test_a_placement_that_nobody_knows_is_not_held_against_an_artefact() -> None:
    asked = Placement(min_accelerator_macs=1.0)
    assert problems(None, asked, NPU) == ()
    assert problems(found(None), asked, NPU) == ()


def test_a_share_that_is_not_all_is_never_shown_as_all() -> None:
    (text,) = problems(found(0.9999, "Softmax"), Placement(min_accelerator_macs=1.0), NPU)
    assert text.startswith("0.99 of the MACs run on the npu, the profile asks for 1.00")
    assert text.endswith("Softmax")


def test_what_cannot_be_made_names_operator_node_reason_and_remedy() -> None:
    texts = coverage_problems(Coverage(refused=(SOFTMAX,)), Placement(), NPU)
    assert texts == ("Softmax 'head': has no int8 form (leave it out)",)


def test_a_lint_below_the_floor_names_the_operators_that_fall_back() -> None:
    others = tuple(
        Finding(node=f"n{i}", operator=f"Op{i}", reason="is not in the list") for i in range(5)
    )
    coverage = Coverage(fallback=(SOFTMAX, *others, SOFTMAX), accelerator_macs=0.5)
    texts = coverage_problems(coverage, Placement(min_accelerator_macs=0.9), NPU)
    assert texts[0].startswith("0.50 of the MACs would run on the npu")
    assert texts[1] == "Softmax 'head' and 1 more of them: has no int8 form (leave it out)"
    assert texts[2] == "Op0 'n0': is not in the list"
    assert texts[-1] == "and 2 more"


def test_the_manifest_promises_what_a_tool_found_and_names_what_falls_back() -> None:
    asked = Placement(min_accelerator_macs=0.9, fallback_ops=("Softmax",))
    promised = contract(found(0.957, "Resize"), asked)
    assert promised.min_accelerator_macs == 0.95
    assert promised.fallback_ops == ("Resize", "Softmax")


def test_what_was_only_linted_promises_the_floor() -> None:
    linted = Found(accelerator_macs=1.0, fallback_ops=(), evidence="linted")
    asked = Placement(min_accelerator_macs=0.9)
    assert contract(linted, asked).min_accelerator_macs == 0.9
    assert contract(None, asked).min_accelerator_macs == 0.9


@given(share=SHARES, floor=SHARES)
def test_a_promise_never_asks_for_more_than_was_found_nor_for_less_than_the_profile(
    share: float, floor: float
) -> None:
    promised = contract(found(share), Placement(min_accelerator_macs=floor)).min_accelerator_macs
    assert floor <= promised <= max(share, floor)


def test_a_share_that_nobody_knows_is_said_where_the_profile_asks_for_one() -> None:
    (text,) = unknown(None, Placement(min_accelerator_macs=0.9), NPU)
    assert "is not known here; the profile asks for 0.90" in text
    assert unknown(found(0.95), Placement(min_accelerator_macs=0.9), NPU) == ()
    assert unknown(None, Placement(min_accelerator_macs=0.9), CPU) == ()


def test_only_accelerators_have_a_floor() -> None:
    board = board_of("npu", "cpu")
    board = replace(board, placement=Placement(min_accelerator_macs=0.7))
    floors = [floor_of(board, engine).min_accelerator_macs for engine in board.engines]
    assert floors == [0.7, Placement().min_accelerator_macs]


def test_of_each_accelerator_the_first_usable_engine_is_built_for() -> None:
    board = board_of("npu", "cpu", "cpu")
    assert chosen(board, wanted=(), usable=[0, 2]) == [0, 2]
    assert chosen(board, wanted=(), usable=[1, 2]) == [0, 1]


def test_engines_that_are_asked_for_are_built_for_though_others_stand_before_them() -> None:
    board = board_of("cpu", "npu", names=["onnxruntime", "litert"])
    assert chosen(board, wanted=["litert"], usable=[0]) == [1]


def test_an_engine_that_the_board_lacks_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no engine 'rknn'"):
        chosen(board_of("cpu"), wanted=["rknn"], usable=[0])


def board_of(*accelerators: str, names: Sequence[str] = ()) -> DeviceProfile:
    here = profile.find("generic-x86_64")
    named = names or ["onnxruntime"] * len(accelerators)
    engines = tuple(
        EngineSpec(name=name, version="1", accelerator=on)  # type: ignore[arg-type]
        for name, on in zip(named, accelerators, strict=True)
    )
    return replace(here, engines=engines)
