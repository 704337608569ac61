"""The search and its finals on small real models, timed by a stopwatch that is told its time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import profile
from edgekit.profile import DeviceProfile
from edgekit.recipe import Budget, PassSpec, Recipe, Search
from edgekit_converters import source
from edgekit_converters.bench import Bench, Line
from edgekit_converters.build import variants
from edgekit_converters.cache import Cache
from edgekit_converters.measure import Measurer, Timing
from edgekit_converters.targets import target_for
from edgekit_converters.trials import FLOAT
from edgekit_converters.workshop import Workshop
from edgekit_runtime.engines import Session, Tensors
from tests.converters.building import (
    HERE,
    Stopwatch,
    build_for,
    images,
    write_data,
    write_model,
)
from tests.converters.tflite_models import write_dense

ONE_STATIC = PassSpec(
    name="static-int8", options={"only": "all", "calibrator": "minmax", "per_channel": True}
)


class Interrupted(Stopwatch):
    """Counts what it measures; the power fails at the measurement after `until`."""

    def __init__(self, *, until: int = 1000) -> None:
        super().__init__()
        self.asked = 0
        self._until = until

    def measure(
        self, sessions: Mapping[str, Session], inputs: Tensors, *, quick: bool = False
    ) -> dict[str, Timing]:
        if self.asked == self._until:
            raise KeyboardInterrupt
        self.asked += 1
        return super().measure(sessions, inputs, quick=quick)


class SecondThoughts(Stopwatch):
    """Twice as fast at a glance; looked at longer, not always faster than float."""

    def measure(
        self, sessions: Mapping[str, Session], inputs: Tensors, *, quick: bool = False
    ) -> dict[str, Timing]:
        if quick:
            return super().measure(sessions, inputs, quick=quick)
        slow, fast = (12.0,) * 4, (8.0,) * 4
        return {
            name: Timing(blocks_ms=((10.0,) * 4,) * 3 if name == FLOAT else (slow, fast, fast))
            for name in sessions
        }


def fragile() -> onnx.ModelProto:
    """A linear classifier of digits behind two scalings that undo each other.

    In between one channel is a million times the others, so 8 bits for that tensor lose all but
    one of them; the product behind it bears them well.
    """
    pictures, labels = images()
    rows = pictures.reshape(-1, 64)
    target = np.eye(10, dtype=np.float32)[labels]
    head = np.linalg.solve(rows.T @ rows + 0.1 * np.eye(64), rows.T @ target)
    up = np.ones(64, np.float32)
    up[36] = 1e6
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    constants = {
        "up": up,
        "down": 1 / up,
        "turn": turn,
        "back": turn.T @ head,
    }
    nodes = [
        helper.make_node("Mul", ["image", "up"], ["a"], "up_"),
        helper.make_node("Mul", ["a", "down"], ["b"], "down_"),
        helper.make_node("MatMul", ["b", "turn"], ["c"], "turn_"),
        helper.make_node("Identity", ["c"], ["d"], "identity_"),
        helper.make_node("MatMul", ["d", "back"], ["scores"], "back_"),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "fragile",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 64])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
            [
                numpy_helper.from_array(np.asarray(value, np.float32), name)
                for name, value in constants.items()
            ],
        ),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )


def line_of(
    model: Path,
    data: Path | None,
    folder: Path,
    *,
    recipe: Recipe,
    measurer: Measurer | None = None,
    board: DeviceProfile | None = None,
) -> Line:
    """What is made for the first engine of a board that takes the model."""
    board = board or profile.find(HERE)
    folder.mkdir(exist_ok=True)
    workshop = Workshop(
        source.read(model),
        recipe=recipe,
        shapes={},
        data=data,
        scratch=folder,
        cache=Cache(None),
    )
    for engine in board.engines:
        target = target_for(engine)
        if target is not None and target.format == workshop.source.format:
            watch = measurer or Stopwatch()
            return Bench(
                workshop, board, engine, target=target, measurer=watch, say=lambda _: None
            ).line()
    raise AssertionError("no engine takes it")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


def test_a_second_build_makes_and_times_nothing_and_has_the_same_digest(
    model: Path, data: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    first, second = Interrupted(), Interrupted()
    (tmp_path / "again").mkdir()

    before = build_for(HERE, model, tmp_path, data=data, cache=cache, measurer=first)
    entries = set((tmp_path / "cache").glob("*/*"))
    after = build_for(HERE, model, tmp_path / "again", data=data, cache=cache, measurer=second)

    assert before.digest == after.digest
    assert before.tried == after.tried
    assert first.asked > 0
    assert second.asked == 0
    assert set((tmp_path / "cache").glob("*/*")) == entries


@pytest.mark.parametrize("until", [1, 3])
def test_a_build_that_was_interrupted_goes_on(
    until: int, model: Path, data: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = Interrupted()
    wanted = build_for(HERE, model, tmp_path / "whole", data=data, measurer=whole)

    with pytest.raises(KeyboardInterrupt):
        build_for(
            HERE,
            model,
            tmp_path / "broken",
            data=data,
            cache=cache,
            measurer=Interrupted(until=until),
        )
    rest = Interrupted()
    found = build_for(HERE, model, tmp_path / "broken", data=data, cache=cache, measurer=rest)

    assert found.digest == wanted.digest
    assert rest.asked < whole.asked


def test_a_search_that_ran_out_of_time_says_so_and_ships_what_it_has(
    model: Path, data: Path, tmp_path: Path
) -> None:
    recipe = Recipe(search=Search(limit_s=1e-9))

    found = build_for(HERE, model, tmp_path, data=data, recipe=recipe)

    assert found.truncated
    assert any("time limit" in note for note in found.notes)
    assert [variant.name for variant in found.variants] == ["float"]


def test_a_search_that_ran_out_of_trials_says_so_only_where_there_was_more_to_try(
    model: Path, data: Path, tmp_path: Path
) -> None:
    alone = (ONE_STATIC,)
    two = (ONE_STATIC, PassSpec(name="dynamic-int8"))

    done = line_of(
        model, data, tmp_path / "a", recipe=Recipe(passes=alone, search=Search(trials=1))
    )
    cut = line_of(model, data, tmp_path / "b", recipe=Recipe(passes=two, search=Search(trials=1)))

    assert len(done.tried) == len(cut.tried) == 1
    assert done.notes == ()
    assert cut.notes == ("onnxruntime: the search ended after 1 trials, with more to try",)
    assert not cut.truncated


def test_the_block_that_8_bits_destroy_stays_in_float_and_the_rest_does_not(
    tmp_path: Path,
) -> None:
    pictures, labels = images()
    data = write_data(tmp_path, image=pictures.reshape(-1, 64), labels=labels)
    model = write_model(tmp_path, fragile())

    line = line_of(model, data, tmp_path / "scratch", recipe=Recipe(passes=(ONE_STATIC,)))

    (best,) = line.rungs
    kept = best.scheme.steps[-1].options["keep_float"]
    assert isinstance(kept, tuple)
    assert {"up_", "down_"} <= set(kept)
    assert "back_" not in kept
    assert list(variants([line], most=3)) == ["mixed", "float"]
    whole, *probes, mixed = line.tried
    assert not whole.chosen
    assert "agreement" in whole.reasons[0]
    assert mixed.chosen
    assert probes
    assert all(probe.probe and not probe.chosen and probe.speedup is None for probe in probes)


def test_what_looked_faster_and_is_not_always_is_rejected(
    model: Path, data: Path, tmp_path: Path
) -> None:
    line = line_of(
        model,
        data,
        tmp_path / "scratch",
        recipe=Recipe(passes=(ONE_STATIC,)),
        measurer=SecondThoughts(),
    )

    assert line.rungs == ()
    assert [entry.reason for entry in line.rejected] == [
        "not clearly faster than float: 0.83x to 1.25x"
    ]


def test_what_is_not_proven_stands_behind_float_and_is_not_called_rejected(
    model: Path, tmp_path: Path
) -> None:
    pictures, labels = images()
    few = write_data(tmp_path, image=pictures[:20], labels=labels[:20])

    line = line_of(model, few, tmp_path / "scratch", recipe=Recipe(passes=(ONE_STATIC,)))

    (unproven,) = line.rungs
    assert unproven.verdict.unproven
    assert line.rejected == ()
    assert [(entry.chosen, entry.reasons) for entry in line.tried] == [(True, ())]
    assert list(variants([line], most=3)) == ["float", "int8"]


def test_where_float_breaks_a_limit_nothing_stands_behind_it(model: Path, tmp_path: Path) -> None:
    pictures, labels = images()
    few = write_data(tmp_path, image=pictures[:20], labels=labels[:20])
    budget = Budget(max_latency_ms=6.0)

    line = line_of(
        model, few, tmp_path / "scratch", recipe=Recipe(passes=(ONE_STATIC,), budget=budget)
    )

    assert line.rungs == ()
    assert variants([line], most=3) == {}
    assert {entry.scheme for entry in line.rejected} == {"source", line.tried[0].scheme}


def test_one_variant_is_the_fastest_that_is_proven(model: Path, data: Path, tmp_path: Path) -> None:
    recipe = Recipe(passes=(ONE_STATIC,), search=Search(variants=1))

    found = build_for(HERE, model, tmp_path, data=data, recipe=recipe)

    assert [variant.name for variant in found.variants] == ["int8"]


def test_a_group_that_is_alone_in_selection_does_not_rule_everything_out(
    model: Path, tmp_path: Path
) -> None:
    groups = np.arange(160) // 27
    data = write_data(tmp_path, groups=groups)

    line = line_of(model, data, tmp_path / "scratch", recipe=Recipe(passes=(ONE_STATIC,)))

    assert [made.scheme.name for made in line.rungs] == [line.tried[0].scheme]


def test_a_rewrite_that_a_recipe_asks_for_alone_is_made(model: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    recipe = Recipe(passes=(PassSpec(name="batch"), PassSpec(name="layout")))

    line = line_of(model, data, tmp_path / "scratch", recipe=recipe)

    assert {entry.scheme for entry in line.rejected} == {"batch", "layout"}


def test_a_board_with_two_engines_gets_both_ladders_under_names_of_their_own(
    model: Path, data: Path, tmp_path: Path
) -> None:
    board = profile.find(HERE)
    (engine,) = (engine for engine in board.engines if engine.name == "onnxruntime")
    lines = [
        line_of(
            model,
            data,
            tmp_path / f"scratch{threads}",
            recipe=Recipe(passes=(ONE_STATIC,)),
            board=msgspec.structs.replace(
                board, engines=(msgspec.structs.replace(engine, threads=threads),)
            ),
        )
        for threads in (1, 2)
    ]

    assert list(variants(lines, most=3)) == ["int8", "float", "int8-cpu", "float-cpu"]


def test_passes_that_a_recipe_asks_of_a_tflite_source_are_rejected_with_the_reason(
    tmp_path: Path,
) -> None:
    model = tmp_path / "dense.tflite"
    write_dense(model)

    found = build_for(HERE, model, tmp_path, recipe=Recipe(passes=(ONE_STATIC,)))

    assert found.gate.outcome == "passed"
    assert [(entry.scheme, entry.reason) for entry in found.rejected] == [
        ("static-int8", "a .tflite source is packaged as it is")
    ]
