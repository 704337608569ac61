"""The doctor says what can be built and proven here for each board, and what adds more."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgekit import profile as profiles
from edgekit.errors import BuildError, EdgekitError, UsageError
from edgekit.profile import DeviceProfile, EngineSpec
from edgekit_converters import doctor, doctor_tables
from edgekit_converters.doctor import EngineHere, Line
from edgekit_converters.doctor_commands import doctor as command
from edgekit_converters.targets import TARGETS, target_for
from edgekit_converters.toolchains import TOOLCHAINS, ToolChain
from edgekit_converters.toolchains.environments import State
from tests.converters.test_toolchains import needs_uv
from tests.converters.tiny_toolchains import NAME, add, tiny, write_lock

BOARDS = {name: profiles.find(name) for name in profiles.names()}
PAIRS = [(board, engine) for board in BOARDS.values() for engine in board.engines]
ENGINES = (
    EngineHere(name="onnxruntime", version="1.31.1"),
    EngineHere(name="litert", version="2.3.0"),
)
WITHOUT_LITERT = (
    ENGINES[0],
    EngineHere(name="litert", version=None, command="pip install ai-edge-litert"),
)

pairs = st.sampled_from(PAIRS)
ready_sets = st.frozensets(st.sampled_from(sorted(TOOLCHAINS)))


def states_with(ready: frozenset[str]) -> dict[str, State]:
    return {
        name: State(status="ready", detail="")
        if name in ready
        else State(status="missing", detail="it is not installed")
        for name in TOOLCHAINS
    }


def judged(
    board: DeviceProfile,
    engine: EngineSpec,
    ready: frozenset[str],
    engines: Sequence[EngineHere] = ENGINES,
) -> Line:
    return doctor.judge(
        board, engine, target=target_for(engine), states=states_with(ready), engines=engines
    )


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def document(*arguments: str) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exception is None
    return json.loads(result.stdout)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without tool chains, on which the tiny one can be installed."""
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path / "toolchains"))
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    add(monkeypatch, tiny(write_lock(tmp_path / "wheels")))
    return tmp_path


@given(pair=pairs, ready=ready_sets)
def test_what_is_missing_is_not_ready_and_its_command_names_just_that(
    pair: tuple[DeviceProfile, EngineSpec], ready: frozenset[str]
) -> None:
    line = judged(*pair, ready)

    assert ready.isdisjoint(line.missing)
    assert set(line.missing) <= {*line.toolchains, line.pinned}
    installable = [name for name in line.missing if TOOLCHAINS[name].python is not None]
    named = [] if line.command is None else line.command.split()[3::2]
    assert named == installable


@given(pair=pairs, ready=ready_sets, more=ready_sets)
def test_another_tool_chain_never_takes_anything_away(
    pair: tuple[DeviceProfile, EngineSpec], ready: frozenset[str], more: frozenset[str]
) -> None:
    before, after = judged(*pair, ready), judged(*pair, ready | more)

    assert set(before.builds_from) <= set(after.builds_from)
    assert set(after.missing) <= set(before.missing)


@given(pair=pairs)
def test_with_every_tool_chain_nothing_is_missing_where_a_target_exists(
    pair: tuple[DeviceProfile, EngineSpec],
) -> None:
    line = judged(*pair, frozenset(TOOLCHAINS))

    if line.target is None:
        assert (line.reach, line.builds_from) == ("nothing", ())
    else:
        assert (line.missing, line.reason, line.command) == ((), "", None)
        assert line.builds_from
        assert line.reach == TARGETS.get(line.target).evidence(*pair)


@given(pair=pairs, ready=ready_sets)
def test_what_cannot_be_built_is_at_most_linted(
    pair: tuple[DeviceProfile, EngineSpec], ready: frozenset[str]
) -> None:
    line = judged(*pair, ready)

    if not line.builds_from:
        assert line.reach in ("linted", "nothing")
        assert line.reason


def test_an_engine_that_is_not_here_takes_the_proof_away_and_comes_with_its_command() -> None:
    board = BOARDS["generic-x86_64"]
    engine = next(engine for engine in board.engines if engine.name == "litert")

    line = judged(board, engine, frozenset(TOOLCHAINS), WITHOUT_LITERT)

    assert (line.reach, line.builds_from) == ("linted", ())
    assert line.reason == "engine litert is not on this machine"
    assert line.command == "pip install ai-edge-litert"


def test_the_board_s_own_version_of_an_engine_is_asked_for() -> None:
    board = BOARDS["jetson-orin-nano"]
    cpu = next(engine for engine in board.engines if engine.accelerator == "cpu")

    line = judged(board, cpu, frozenset())

    assert line.builds_from == ("onnx",)
    assert line.missing == ("onnxruntime-1.23",)
    assert line.command == "edgekit doctor --install onnxruntime-1.23"


def test_a_program_that_only_its_vendor_installs_has_no_command() -> None:
    board = BOARDS["coral-usb"]
    tpu = next(engine for engine in board.engines if engine.accelerator == "tpu")

    line = judged(board, tpu, frozenset(TOOLCHAINS) - {"edgetpu"})

    assert (line.missing, line.builds_from, line.command) == (("edgetpu",), (), None)
    assert "edgetpu" in line.reason


def test_the_document_has_the_machine_the_engines_the_tool_chains_and_the_boards(
    bare: Path,
) -> None:
    found = document("--profile", "generic-x86_64")

    assert found["machine"]["cores"] >= 1
    assert found["machine"]["disk_free_mb"] > 0
    assert found["machine"]["toolchains"] == str(bare / "toolchains")
    (runtime,) = [engine for engine in found["engines"] if engine["name"] == "onnxruntime"]
    assert "CPUExecutionProvider" in runtime["providers"]
    assert {chain["name"] for chain in found["toolchains"]} == set(TOOLCHAINS)
    assert {line["profile"] for line in found["lines"]} == {"generic-x86_64"}


def test_every_engine_of_every_board_has_a_line(bare: Path) -> None:
    found = document()

    lines = [(line["profile"], line["engine"], line["accelerator"]) for line in found["lines"]]
    assert lines == [(board.name, engine.name, engine.accelerator) for board, engine in PAIRS]


@needs_uv
def test_installing_makes_a_tool_chain_ready_and_reports_it(bare: Path) -> None:
    found = document("--install", NAME, "--profile", "generic-x86_64")

    assert [(one["name"], one["error"]) for one in found["installed"]] == [(NAME, None)]
    (chain,) = [chain for chain in found["toolchains"] if chain["name"] == NAME]
    assert (chain["status"], chain["command"]) == ("ready", None)


@needs_uv
def test_one_tool_chain_that_fails_does_not_keep_another_from_being_installed(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = ToolChain(name="vendor", title="vendor", program="no-such-compiler", note="ask for it")
    add(monkeypatch, vendor)

    result = invoke("--install", "vendor", "--install", NAME, "--profile", "jetson", "--json")

    assert isinstance(result.exception, BuildError)
    assert "no-such-compiler is not on PATH" in result.exception.message
    assert result.exception.hint == "ask for it"
    installed = json.loads(result.stdout)["installed"]
    assert [one["error"] is None for one in installed] == [False, True]


def test_an_unknown_tool_chain_is_refused_before_anything_is_done(bare: Path) -> None:
    result = invoke("--install", NAME, "--install", "velo")

    assert isinstance(result.exception, UsageError)
    assert not (bare / "toolchains").exists()


def test_an_unknown_board_is_refused() -> None:
    assert isinstance(invoke("--profile", "abacus").exception, EdgekitError)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_tables_fit_a_terminal_and_keep_every_name_whole(bare: Path, columns: int) -> None:
    found = doctor.examine(list(BOARDS.values()))
    console = Console(file=io.StringIO(), width=columns, highlight=False)

    console.print(doctor_tables.page(found))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= columns
    assert "…" not in text
    words = set(text.replace(",", " ").split())
    assert set(BOARDS) | set(TOOLCHAINS) <= words
    assert found.command is not None
    assert found.command in " ".join(text.split())
