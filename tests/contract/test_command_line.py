"""The command line's own promises: light help, exit codes, hints, keys; errors, logs, registry."""

from __future__ import annotations

import json
import logging
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import cli, errors, logs
from edgekit.clock import SystemClock
from edgekit.errors import EdgekitError, UsageError
from edgekit.registry import Registry, load
from tests.clock import ManualClock

HEAVY = ["numpy", "msgspec", "cryptography", "yaml", "paho", "onnx", "onnxruntime", "safetensors",
         "importlib.metadata", "asyncio", "sqlalchemy", "rich", "logging"]  # fmt: skip

# docs and other programs rely on these: 2 usage, 3 build, 4 bundle, 5 engine, 6 serving, 7 link,
# 8 fleet.
EXIT_CODES = {
    "EdgekitError": 2, "UsageError": 2, "ConfigError": 2, "ProfileError": 2, "RecipeError": 2,
    "DataError": 2, "StorageError": 2, "BuildError": 3, "ToolChainMissing": 3,
    "ModelError": 3, "GateRefused": 3,
    "BundleError": 4, "ManifestError": 4, "IntegrityError": 4, "UntrustedError": 4,
    "EngineError": 5, "EngineNotInstalled": 5, "GoldenMismatch": 5, "PlacementBroken": 5,
    "LatencyExceeded": 5, "MemoryExceeded": 5,
    "WorkerLost": 5, "ServingError": 6, "AccessDenied": 6, "Unavailable": 6,
    "Overloaded": 6, "DeadlineMissed": 6, "RequestError": 6, "NotServed": 6, "LinkError": 7,
    "MessageError": 7, "FleetError": 8,
}  # fmt: skip


def edgekit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom edgekit.cli import cli\n"
        "cli.main(['--help'], prog_name='edgekit', standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert done.stderr.strip() == "[]"
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)


def test_an_unknown_command_is_a_usage_error_without_traceback() -> None:
    done = edgekit("frobnicate")

    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such command 'frobnicate'" in done.stderr
    assert "Traceback" not in done.stderr


def test_new_keys_are_told_on_stdout_and_never_replaced(tmp_path: Path) -> None:
    done = edgekit("keys", "new", tmp_path / "keys", "--json")

    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert stat.S_IMODE(Path(told["key"]).stat().st_mode) == 0o600
    assert told["public"] == str(tmp_path / "keys/edgekit.pub")
    assert len(told["id"]) == 64

    before = Path(told["key"]).read_bytes()
    again = edgekit("keys", "new", tmp_path / "keys")
    assert again.returncode == 2
    assert again.stderr == (
        f"error: {tmp_path}/keys/edgekit.key is there already\nhint: name another folder\n"
    )
    assert Path(told["key"]).read_bytes() == before


def test_new_keys_for_people_name_both_files(tmp_path: Path) -> None:
    done = edgekit("keys", "new", tmp_path)

    assert done.returncode == 0
    assert str(tmp_path / "edgekit.key") in done.stdout
    assert str(tmp_path / "edgekit.pub") in done.stdout


def test_the_version_is_told() -> None:
    assert edgekit("--version").stdout.startswith("edgekit, version ")


def test_every_error_class_has_the_exit_code_that_is_documented() -> None:
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, EdgekitError)
    }

    assert found == EXIT_CODES


def test_an_error_carries_its_message_and_hint() -> None:
    error = errors.Overloaded("queue is full", retry_after_s=0.5, hint="ask later")

    assert (str(error), error.message, error.hint) == (
        "queue is full",
        "queue is full",
        "ask later",
    )
    assert error.retry_after_s == 0.5


@pytest.fixture
def record() -> logging.LogRecord:
    return logging.LogRecord("edgekit.x", logging.WARNING, "x.py", 1, "model %s", ("a",), None)


def test_a_log_line_of_a_board_is_json_with_its_facts(record: logging.LogRecord) -> None:
    record.created = 1_700_000_000.25
    record.__dict__.update(slot="a", took_ms=1.5, path=Path("/x"), event="mine", level="mine")

    line = logs.JsonFormatter().format(record)

    assert "\n" not in line
    assert json.loads(line) == {
        "at": "2023-11-14T22:13:20.250Z", "level": "warning", "logger": "edgekit.x",
        "event": "model a", "slot": "a", "took_ms": 1.5, "path": "/x", "event_": "mine",
        "level_": "mine",
    }  # fmt: skip


def test_a_log_line_for_people_cannot_be_forged_by_a_fact(record: logging.LogRecord) -> None:
    record.__dict__.update(slot="a", reason="x\n12:00:00 info all is well", empty="")

    line = logs.TextFormatter().format(record)

    assert line[8:].startswith(" warning model a slot=a reason=")
    assert "\n" not in line


def test_a_traceback_stays_with_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        info = sys.exc_info()
    failed = logging.LogRecord("x", logging.ERROR, "x.py", 1, "failed", (), info)

    assert "ValueError: no" in json.loads(logs.JsonFormatter().format(failed))["traceback"]
    assert "\nValueError: no" in logs.TextFormatter().format(failed)


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("json_lines", [True, False])
def test_logs_go_to_stderr(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str], json_lines: bool
) -> None:
    logs.configure(json_lines=json_lines, level=logging.INFO)

    root_logger.info("started", extra={"port": 8500})
    root_logger.debug("not told")

    told = capsys.readouterr()
    assert told.out == ""
    assert "started" in told.err
    assert "8500" in told.err
    assert "not told" not in told.err


def test_a_registry_loads_on_first_use_and_names_what_it_knows() -> None:
    registry: Registry[object] = Registry(
        "engine", group="edgekit.engines", builtin={"a": "json:loads", "b": "no_such_module:x"}
    )

    assert registry.get("a") is json.loads
    assert registry.get("a") is json.loads
    assert registry.names() == ["a", "b"]
    with pytest.raises(UsageError, match="no engine called 'c'") as caught:
        registry.get("c")
    assert caught.value.hint == "known: a, b"
    with pytest.raises(ModuleNotFoundError):
        registry.get("b")


def test_a_registry_finds_what_others_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgekit.passes]\ntheirs = json:dumps\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[object] = Registry("pass", group="edgekit.passes", builtin={})

    assert registry.names() == ["theirs"]
    assert registry.get("theirs") is json.dumps


def test_a_dotted_name_is_imported() -> None:
    assert load("edgekit.errors:EdgekitError") is EdgekitError


def test_time_is_a_value() -> None:
    clock = ManualClock(monotonic_s=1.0, now_ms=1000)
    clock.advance(0.25)
    system = SystemClock()

    assert (clock.monotonic(), clock.now_ms()) == (1.25, 1250)
    assert system.monotonic() <= system.monotonic()
    assert system.now_ms() > 1_700_000_000_000
