"""Profiles and recipes: what people write, read within limits, with the wrong place named."""

from __future__ import annotations

import contextlib
import json
import platform
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import documents, profile, recipe, steps
from edgekit.errors import ProfileError, RecipeError, UsageError
from edgekit.profile import DeviceProfile, Identify
from tests.contract import samples

BOARD = """\
name: board
title: A board
architecture: aarch64
memory_mb: 2048
engines:
  - {name: onnxruntime, version: "1.23"}
placement: {min_accelerator_macs: 0.5, fallback_ops: [Softmax]}
quality: {evidence: executed, checked: "2026-11-01", sources: [a data sheet]}
"""
QUALITY = 'quality: {evidence: linted, checked: "2026-11-02", sources: [a guess]}\n'


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", profile.names())
def test_every_shipped_profile_resolves_under_its_own_name(name: str) -> None:
    found = profile.find(name)

    assert found.name == name
    assert msgspec.json.decode(msgspec.json.encode(found), type=DeviceProfile) == found


def test_a_child_changes_what_it_names_and_inherits_the_rest(tmp_path: Path) -> None:
    put(tmp_path, "board", BOARD)
    put(tmp_path, "child", "name: child\nextends: board\nmemory_mb: 4096\n"
        "placement: {min_accelerator_macs: 0.9}\n" + QUALITY)  # fmt: skip

    child = profile.find("child", folders=[tmp_path])

    assert (child.name, child.title, child.memory_mb) == ("child", "A board", 4096)
    assert child.placement.fallback_ops == ("Softmax",)
    assert child.placement.min_accelerator_macs == 0.9
    assert child.quality.evidence == "linted"


def test_what_was_run_on_one_board_is_never_inherited(tmp_path: Path) -> None:
    put(tmp_path, "board", BOARD)
    put(tmp_path, "child", "name: child\nextends: board\n")

    with pytest.raises(ProfileError, match="missing required field `quality`"):
        profile.find("child", folders=[tmp_path])


def test_a_name_is_never_inherited(tmp_path: Path) -> None:
    put(tmp_path, "board", BOARD)
    put(tmp_path, "child", f"extends: board\n{QUALITY}")

    with pytest.raises(ProfileError, match=r"child\.yaml has no name"):
        profile.find("child", folders=[tmp_path])


def test_a_profile_given_by_path_finds_its_parent_beside_itself(tmp_path: Path) -> None:
    put(tmp_path, "board", BOARD)
    path = put(tmp_path, "child", f"name: child\nextends: board\n{QUALITY}")

    assert profile.read(path) == profile.find(str(path))


def test_profiles_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a", f"name: a\nextends: b\n{QUALITY}")
    put(tmp_path, "b", f"name: b\nextends: a\n{QUALITY}")
    put(tmp_path, "self", f"name: self\nextends: {tmp_path}/self.yaml\n{QUALITY}")

    with pytest.raises(ProfileError, match="circle: a -> b -> a"):
        profile.find("a", folders=[tmp_path])
    with pytest.raises(ProfileError, match="circle: self"):
        profile.find("self", folders=[tmp_path])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOARD + "colour: red\n", "unknown field `colour`"),
        (BOARD.replace("version:", "edition:"), r"unknown field `edition`.*engines\[0\]"),
        (BOARD.replace("aarch64", "arm"), r"Invalid enum value 'arm'.*architecture"),
        (BOARD.replace("2048", "-1"), "memory_mb"),
        (BOARD.replace("2048", "lots"), "Expected `int.*memory_mb"),
        (BOARD.replace("name: board", "name: The Board"), "name"),
        (BOARD.replace('"2026-11-01"', "2026-11-01"), "checked"),
        (BOARD + "extends: [a, b]\n", "extends must name one profile"),
        (BOARD + "extends: nowhere\n", "no profile called 'nowhere'"),
        ("- a\n", "must be a mapping, it is a list"),
        ("", "must be a mapping, it is a NoneType"),
    ],
)
def test_a_wrong_or_unknown_field_is_named(tmp_path: Path, text: str, match: str) -> None:
    path = put(tmp_path, "board", text)

    with pytest.raises(ProfileError, match=match):
        profile.read(path)


def test_a_profile_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ProfileError, match="no profile called 'jetsen'") as caught:
        profile.find("jetsen")

    assert caught.value.hint is not None
    with pytest.raises(ProfileError, match=r"none\.yaml cannot be read: No such file"):
        profile.find("/nowhere/none.yaml")


def test_a_machine_is_the_board_only_where_all_it_asks_for_is_there() -> None:
    here = msgspec.structs.replace(samples.PROFILE, architecture=platform.machine())
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    named = Identify(device_tree_model="No Such Board")
    chip = Identify(device_tree_compatible="nobody,nothing")
    processor = Identify(cpu_model="No Such Processor")

    assert here.is_this_machine()
    assert not msgspec.structs.replace(here, architecture=other).is_this_machine()
    for identify in (named, chip, processor):
        assert not msgspec.structs.replace(here, identify=identify).is_this_machine()


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (LAUGHS, "line 1: an alias stands for this"),
        (MERGES, "line 1: an alias stands for this"),
        ("a: &a [*a]", "alias"),
        ("a: 1\nb: 2\na: 3\n", "key 'a' comes twice"),
        ("a: {b: 1, b: 2}", "key 'b' comes twice"),
        ("? [a, b]\n: 1\n", "is not a word"),
        ("a: .nan", "not a finite number"),
        ("a: [.inf]", "not a finite number"),
        ("a: 1.0e+999", "not a finite number"),
        ("[" * 40 + "]" * 40, "nested deeper than 32"),
        ("[" * 100_000, "nested deeper than 32"),
        ("a: 2026-13-45", "month must be in"),
        ("a: " + "1" * 5000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: [", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("\x07", "not valid YAML"),
    ],
)
def test_yaml_that_is_dangerous_or_doubtful_is_refused(text: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        documents.parse(text, what="it", error=RecipeError)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("ab \n'", max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_plain_trees_come_back(tree: object) -> None:
    assert documents.parse(json.dumps(tree), what="it", error=UsageError) == tree


@given(st.text(max_size=60))
def test_garbage_is_a_usage_error_or_a_tree(text: str) -> None:
    with contextlib.suppress(UsageError):
        documents.parse(text, what="it", error=UsageError)


def test_a_document_that_is_too_large_or_not_text_is_refused(tmp_path: Path) -> None:
    large, binary = put(tmp_path, "large", " " * ((1 << 20) + 1)), tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\0")

    with pytest.raises(ProfileError, match=r"large\.yaml has more than 1048576 bytes"):
        profile.read(large)
    with pytest.raises(RecipeError, match=r"binary\.yaml is not UTF-8"):
        recipe.read(binary)
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        recipe.read(tmp_path)


def test_an_empty_recipe_is_the_default(tmp_path: Path) -> None:
    assert recipe.read(put(tmp_path, "empty", "")) == recipe.Recipe()


def test_a_recipe_says_each_step_by_its_name(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        "photo",
        "preprocess:\n"
        "  - {op: resize, shorter: 256}\n"
        "  - {op: center_crop, width: 224, height: 224}\n"
        "  - {op: normalise, mean: [127, 127, 127], std: [128, 128, 128]}\n"
        "  - {op: layout, to: NCHW}\n"
        "postprocess: [{op: softmax}, {op: top_k, k: 3}]\n"
        "budget: {accuracy_drop: 0.02}\n"
        "training: {loss: mse}\n",
    )

    read = recipe.read(path)

    assert read.preprocess[0] == steps.Resize(shorter=256)
    assert read.postprocess == (steps.Softmax(), steps.TopK(k=3))
    assert read.training == recipe.Training(loss="mse")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("budgets: {}", "unknown field `budgets`"),
        ("preprocess: [{op: rotate}]", r"Invalid value 'rotate'.*preprocess\[0\]"),
        ("preprocess: [{op: resize}]", "either width and height, or shorter"),
        ("preprocess: [{op: resize, width: 2, height: 2, shorter: 2}]", "or shorter"),
        ("preprocess: [{op: resize, width: 2}]", "or shorter"),
        ("preprocess: [{op: normalise, std: [1, 0, 1]}]", "std of 0"),
        ("budget: {accuracy_drop: 2}", "accuracy_drop"),
        ("budget: {max_latency_ms: .nan}", "not a finite number"),
        ("split: {golden: 0}", "golden"),
        ("metric: Best Guess", "metric"),
        ("[]", "Expected `object`, got `array`"),
        ("false", "Expected `object`, got `bool`"),
    ],
)
def test_a_wrong_field_of_a_recipe_is_named(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        recipe.read(put(tmp_path, "wrong", text))
