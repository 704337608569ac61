"""`edgekit profiles`: boards listed, shown, checked; what cannot be true is named with its line."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgekit import profile
from edgekit.errors import ProfileError
from edgekit.profile import Container, DeviceProfile, EngineSpec, Identify, Placement, Quality
from edgekit_converters import boards, profile_schema
from edgekit_converters.engine_facts import GAPS, PLACES, REQUIRED_OPTIONS, has_wheel, numbers
from edgekit_converters.lint import lint, lint_file
from edgekit_converters.profiles_commands import profiles
from edgekit_converters.yaml_lines import lines_of, place_of, text_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "profiles.md").read_text("utf-8")
TODAY = dt.date(2026, 11, 22)
FILES = sorted((ROOT / "device_profiles").glob("*.yaml"))

Tree = dict[str, Any]
Change = Callable[[Tree], object]


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "80"}).invoke(profiles, list(arguments))


def said(name: str, change: Change) -> list[str]:
    tree = msgspec.to_builtins(profile.find(name))
    change(tree)
    found = lint(profile.resolve(name, tree), file_stem=name, today=TODAY)
    return [f"{text_of(place)}: {message}" for place, message in found]


# The command.


def test_every_shipped_profile_passes_lint() -> None:
    result = run("lint")

    assert result.exit_code == 0, result.output
    assert result.output.count(": ok") == len(profile.names())


def test_profiles_are_listed_with_what_was_run() -> None:
    result = run("list", "--json")

    listed = {found["name"]: found for found in json.loads(result.output)["profiles"]}
    assert listed["jetson"]["quality"]["evidence"] == "linted"


def test_the_list_is_one_line_a_board_in_80_columns() -> None:
    lines = run("list").output.splitlines()

    assert len(lines) == 1 + len(profile.names())
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_a_profile_is_shown_resolved() -> None:
    result = run("show", "jetson-orin-nano", "--json")

    shown = json.loads(result.output)
    assert shown["memory_mb"] == 8192
    assert shown["engines"][0]["providers"][0]["name"] == "TensorrtExecutionProvider"


def test_lint_of_a_broken_file_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text("name: board\ncolour: red\n")

    result = run("lint", str(path))

    assert isinstance(result.exception, ProfileError)
    assert "colour" in result.output


def test_the_table_of_the_readme_is_made_from_the_profiles() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    made = run("list", "--markdown").output.strip()

    assert made.startswith(boards.BEGIN)
    assert made in readme, "put the output of `edgekit profiles list --markdown` into README.md"


def test_the_page_gives_each_field_and_each_provider() -> None:
    fields = [
        field
        for kind in (DeviceProfile, EngineSpec, Container, Identify, Placement, Quality)
        for field in kind.__struct_fields__
    ]

    missing = [word for word in (*fields, *REQUIRED_OPTIONS) if f"`{word}`" not in shortened(PAGE)]

    assert missing == []


def shortened(page: str) -> str:
    return page.replace("`…_", "`openvino_intel_")


def test_the_board_of_the_page_passes_lint(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(name:.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "acme-gateway.yaml"
    path.write_text(example)

    assert lint_file(path, today=TODAY) == ()


# Rules.


def engine(position: int, **fields: Any) -> Change:
    return lambda tree: tree["engines"][position].update(fields)


def board(**fields: Any) -> Change:
    return lambda tree: tree.update(fields)


def quality(**fields: Any) -> Change:
    return lambda tree: tree["quality"].update(fields)


def provider(name: str, **options: str) -> Change:
    return engine(0, providers=[{"name": name, "options": options}])


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("jetson", board(name="other"), "name: is 'other'"),
        ("jetson", engine(0, precisions=["int8-qdq-u8s8"]), "does not take 'int8-qdq-u8s8'"),
        ("jetson", engine(0, precisions=["int3"]), "engines[0].precisions: 'int3' is unknown"),
        ("jetson", engine(0, max_onnx_ir=8), "engines[0].max_opset: opset 20 needs IR 9"),
        ("jetson", engine(0, max_opset=99), "engines[0].max_opset: there is no opset 99"),
        ("jetson", engine(0, providers=[]), "engines[0].providers: is empty"),
        ("jetson", engine(0, accelerator="tpu"), "onnxruntime is not known on a tpu"),
        ("jetson", provider("TensorRTProvider"), "engines[0].providers[0].name: 'TensorRTProv"),
        ("jetson", quality(unverified=[]), "quality.unverified: is empty"),
        ("jetson", quality(verified=[]), "quality.verified: is empty"),
        ("jetson", quality(checked="2026-11-23"), "quality.checked: 2026-11-23 is in the future"),
        ("jetson", quality(checked="2026-13-01"), "quality.checked: '2026-13-01' is no date"),
        ("jetson", quality(sources=["http://a"]), "quality.sources[0]: 'http://a' is no https"),
        ("jetson", quality(sources=["hearsay"]), "quality.sources[0]: 'hearsay' is no https"),
        ("jetson", board(python="3.8"), "python: is 3.8, a native daemon needs 3.10"),
        ("jetson", board(python=None), "runtime: is native: on which Python?"),
        ("jetson", board(memory_mb=64), "memory_mb: is 64"),
        ("jetson", board(power_modes=["7W", "7W"]), "power_modes: says something twice"),
        (
            "jetson",
            board(placement={"min_accelerator_macs": 0}),
            "placement.min_accelerator_macs: is 0",
        ),
        ("jetson", board(architecture="armv7l"), "runtime: is native, and armv7l only takes"),
        ("jetson", board(cores=1), "engines[1].threads: is 2, the board has 1 cores"),
        ("jetson", engine(1, version="1.24"), "PyPI has no onnxruntime 1.24 for Python 3.10"),
        ("jetson", engine(1, version="1.22"), "engines[1].version: is 1.22, and 1.23 for the gpu"),
        ("jetson", engine(0, wheels="PyPI"), "PyPI has no onnxruntime 1.23 for Python 3.10"),
        ("jetson-xavier-nx", board(container=None), "runtime: is container: which image?"),
        ("jetson-xavier-nx", board(runtime="native"), "container: is given, and runtime is native"),
        (
            "jetson-xavier-nx",
            board(container={"image": "a:1", "python": "3.8"}),
            "container.python: is 3.8",
        ),
        ("rv1106", board(python="3.11"), "python: is given, and an artefact-only board"),
        ("rv1106", engine(0, wheels="PyPI"), "engines[0].wheels: says PyPI, and no Python"),
        ("rv1106", engine(0, name="tflite-micro"), "tflite-micro is for cortex-m"),
        ("rk3588", board(python="3.13"), "PyPI has no rknn 2.5 for Python 3.13"),
        ("rk3588", provider("librknnrt.so"), "librknnrt.so needs the options target_platform"),
        ("rk3588", engine(2, name="onnxruntime"), "engines[2]: onnxruntime on cpu comes twice"),
        ("coral-dev-board", engine(0, precisions=["fp32"]), "does not take 'fp32'; it takes int8"),
        ("qcs6490", engine(0, version="1.31", wheels="PyPI"), ""),
        ("qcs6490", board(python="3.10"), "PyPI has no onnxruntime 1.31 for Python 3.10"),
    ],
)
def test_a_profile_that_cannot_be_true_is_named(name: str, change: Change, problem: str) -> None:
    found = said(name, change)

    assert any(problem in text for text in found) if problem else found == [], found


def test_an_accelerator_without_a_floor_of_placement_is_named(tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "device_profiles" / "rk3588.yaml").read_text())
    del tree["placement"]
    path = tmp_path / "rk3588.yaml"
    path.write_text(yaml.safe_dump(tree))

    (problem,) = lint_file(path, today=TODAY)

    assert problem.field == "placement"
    assert "engine on the npu: give min_accelerator_macs" in problem.message


def test_a_problem_names_the_line_of_its_field(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\n"
        "extends: jetson\n"
        "engines:\n"
        "  - name: onnxruntime\n"
        '    version: "1.24"\n'
        "quality:\n"
        "  evidence: linted\n"
        '  checked: "2026-11-22"\n'
        "  verified: [it was read]\n"
        "  unverified: [nothing ran]\n"
        "  sources:\n"
        "    - https://a.example\n"
        "    - a friend\n"
    )

    found = [str(problem) for problem in lint_file(path, today=TODAY)]

    assert "line 5: engines[0].version: PyPI has no onnxruntime 1.24 for Python 3.10" in found[0]
    assert found[-1] == "line 13: quality.sources[1]: 'a friend' is no https address"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\ntitle: 3\n", "line 2: title: Expected `str`, got `int`"),
        ("name: x\narchitecture: mips\n", "line 2: architecture: Invalid enum value 'mips'"),
        ("name: x\n", "Object missing required field"),
        ("name: x\nengines: [\n", "not valid YAML"),
        ("- a\n", "must be a mapping"),
    ],
)
def test_a_file_of_the_wrong_form_is_named_with_its_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)

    (problem,) = lint_file(path, today=TODAY)

    assert expected in str(problem)


# Facts.


def test_each_provider_that_needs_options_is_known() -> None:
    known = set().union(*(p.providers for by in PLACES.values() for p in by.values()))

    assert set(REQUIRED_OPTIONS) <= known
    assert {gap.engine for gap in GAPS} <= set(PLACES)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from(["", ".x", "rc1"]))
def test_the_numbers_of_a_version_are_those_before_anything_else(
    parts: list[int], tail: str
) -> None:
    found = numbers(".".join(map(str, parts)) + tail)

    assert found == tuple(parts if tail != "rc1" else parts[:-1])


@given(st.sampled_from(["3.10", "3.11", "3.12", "3.13"]), st.sampled_from(["x86_64", "aarch64"]))
def test_onnxruntime_1_23_has_a_wheel_for_each_python_of_the_daemon(
    python: str, architecture: str
) -> None:
    cpu = next(e for e in profile.find("jetson").engines if e.accelerator == "cpu")

    assert has_wheel(cpu, python=python, architecture=architecture)


# The schema.


def test_the_schema_in_docs_is_the_one_of_the_type() -> None:
    held = (ROOT / "docs" / "profile.schema.json").read_text("utf-8")

    assert run("schema").output == held, "run: edgekit profiles schema > docs/profile.schema.json"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_file_fits_the_schema(file: Path) -> None:
    jsonschema.validate(yaml.safe_load(file.read_text("utf-8")), profile_schema.schema())


@pytest.mark.parametrize(
    "change",
    [
        board(colour="red"),
        board(name="The Board"),
        board(architecture="mips"),
        board(memory_mb=0),
        board(engines=[]),
        board(python="2.7"),
        engine(0, name="tensorflow"),
        engine(0, threads=0),
        quality(checked="yesterday"),
        quality(sources=[]),
        lambda tree: tree.pop("title"),
        lambda tree: tree.pop("quality"),
    ],
)
def test_what_the_type_refuses_the_schema_refuses(change: Change) -> None:
    tree = json.loads(msgspec.json.encode(profile.find("generic-x86_64")))
    jsonschema.validate(tree, profile_schema.schema())
    change(tree)

    with pytest.raises(ProfileError):
        profile.resolve("generic-x86_64", tree)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, profile_schema.schema())


# Lines.


@given(
    st.recursive(
        st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_each_place_of_a_tree_has_a_line(tree: object) -> None:
    lines = lines_of(yaml.safe_dump(tree))

    def places(value: Any, place: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
        items = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        )
        below = [((*place, key), inner) for key, inner in items]
        return [at for at, _ in below] + [p for at, inner in below for p in places(inner, at)]

    assert set(lines) == set(places(tree, ()))
    assert all(line >= 1 for line in lines.values())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Expected `int` - at `$.engines[0].threads`", ("Expected `int`", "engines[0].threads")),
        ("unknown field `x` - at `$`", ("unknown field `x`", "")),
        ("missing required field `quality`", ("missing required field `quality`", "")),
        ("Expected `str` - at `$.drivers[...]`", ("Expected `str`", "drivers....")),
    ],
)
def test_the_place_in_a_message_of_msgspec_is_found(
    message: str, expected: tuple[str, str]
) -> None:
    told, place = place_of(message)

    assert (told, text_of(place)) == expected
