"""A tool that hangs, grows, crashes or makes nothing ends in one line, and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import BuildError, ToolChainMissing
from edgekit_converters.toolchains import ToolChain, logs
from edgekit_converters.toolchains.driving import Limits, drive
from tests.converters.integer_tflite_models import write_convnet
from tests.converters.tiny_toolchains import add

NAME = "shell"
MB = 1 << 20
# Drives the driver that it is given, and says when the tool has begun.
DRIVE = """
import sys
from pathlib import Path
from edgekit_converters import toolchains
from edgekit_converters.toolchains.driving import drive
toolchains.TOOLCHAINS["shell"] = toolchains.ToolChain(name="shell", title="shell", program="sh")
drive("shell", {}, driver=Path(sys.argv[1]), folder=Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool chain that is everywhere: the shell; its drivers run in the present interpreter."""
    add(monkeypatch, ToolChain(name=NAME, title="shell", program="sh"))


def driver(folder: Path, body: str) -> Path:
    """A driver whose `run` is this."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    file = folder / "tool.py"
    file.write_text(f"import os, signal, subprocess, sys, time\ndef run(request):\n{lines}\n")
    return file


def run(
    folder: Path,
    body: str,
    *,
    produces: Sequence[Path] = (),
    request: dict[str, Any] | None = None,
    limits: Limits = Limits(time_s=20),  # noqa: B008 - frozen
) -> dict[str, Any]:
    return drive(
        NAME,
        request or {},
        driver=driver(folder, body),
        folder=folder / "scratch",
        produces=produces,
        limits=limits,
    )


def failure(folder: Path, body: str, **options: Any) -> str:
    """What a failing run says, which names a log that is there."""
    with pytest.raises(BuildError) as caught:
        run(folder, body, **options)
    message, _, log = caught.value.message.partition("; log: ")
    assert Path(log).is_file()
    assert "\n" not in message
    return message.removeprefix(f"tool chain {NAME} ")


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_gone(process: int) -> None:
    for _ in range(200):
        if not is_running(process):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {process} goes on")


def numbers_in(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()]


def test_a_reply_comes_back_and_the_log_stays(tmp_path: Path) -> None:
    reply = run(
        tmp_path, "print('converted')\nreturn {'twice': request['n'] * 2}", request={"n": 4}
    )

    assert reply == {"twice": 8}
    (log,) = logs.home().iterdir()
    assert log.read_text() == "converted\n"
    assert f"-{NAME}-tool-" in log.name


def test_a_tool_starts_in_a_folder_of_its_own_that_is_gone_afterwards(tmp_path: Path) -> None:
    body = "open('left', 'w').close()\nreturn {'cwd': os.getcwd(), 'tmp': os.environ['TMPDIR']}"

    reply = run(tmp_path, body)

    assert reply["cwd"] == reply["tmp"]
    assert Path(reply["cwd"]).parent == tmp_path / "scratch"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_tool_gets_the_limits_on_threads_and_none_of_our_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")

    reply = run(tmp_path, "return {'environment': dict(os.environ)}")["environment"]

    assert reply["OMP_NUM_THREADS"] == "1"
    assert reply["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert reply["ORT_DISABLE_TELEMETRY"] == "1"
    assert reply["HOME"] == os.environ["HOME"]
    assert "PYTHONPATH" not in reply


def test_a_tool_reads_no_input(tmp_path: Path) -> None:
    assert run(tmp_path, "return {'read': sys.stdin.read()}") == {"read": ""}


def test_a_driver_that_cannot_take_something_says_it_in_its_own_words(tmp_path: Path) -> None:
    said = failure(tmp_path, "raise ValueError('no int8 form of GRU (node gru_1)')")

    assert said == "refused: no int8 form of GRU (node gru_1)"


def test_a_refusal_of_several_lines_comes_back_as_one(tmp_path: Path) -> None:
    said = failure(tmp_path, "raise ValueError('Load failed:\\n  node gru_1\\n')")

    assert said == "refused: Load failed: node gru_1"


def test_a_tool_that_ends_in_a_traceback_is_told_by_its_last_line(tmp_path: Path) -> None:
    assert failure(tmp_path, "raise KeyError('scale')") == "refused: KeyError: 'scale'"


def test_a_tool_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    body = f"""\
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
with open({str(started)!r}, "w") as file:
    file.write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(60)"""

    said = failure(tmp_path, body, limits=Limits(time_s=1))

    assert said == "took longer than 1 s"
    for process in numbers_in(started):
        wait_until_gone(process)


def test_what_a_tool_leaves_running_is_ended_with_it(tmp_path: Path) -> None:
    reply = run(tmp_path, "return {'child': subprocess.Popen(['sleep', '60']).pid}")

    wait_until_gone(reply["child"])


@pytest.mark.parametrize(
    "body",
    [
        "held = b'x' * (400 << 20)\ntime.sleep(60)",
        "code = 'held = b\"x\" * (400 << 20); import time; time.sleep(60)'\n"
        "subprocess.run([sys.executable, '-c', code])",
    ],
    ids=["itself", "by a child"],
)
def test_a_tool_that_eats_memory_is_ended(tmp_path: Path, body: str) -> None:
    said = failure(tmp_path, body, limits=Limits(time_s=20, memory_bytes=200 * MB))

    assert said == "grew beyond 200 MB of memory"


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    body = """\
held = b"x" * (150 << 20)
children = [os.fork() for _ in range(3)]
if 0 in children:
    time.sleep(1.5)
    os._exit(0)
time.sleep(1)
return {"held": len(held)}"""

    reply = run(tmp_path, body, limits=Limits(time_s=20, memory_bytes=400 * MB))

    assert reply == {"held": 150 * MB}


def test_a_tool_that_crashes_is_told_by_its_signal(tmp_path: Path) -> None:
    said = failure(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)\ntime.sleep(20)")

    assert said == "died by signal 11 (SIGSEGV)"


def test_a_tool_that_ends_early_without_an_error_has_failed(tmp_path: Path) -> None:
    assert failure(tmp_path, "os._exit(0)") == "ended without a reply"


def test_a_tool_that_prints_without_end_is_ended(tmp_path: Path) -> None:
    said = failure(
        tmp_path, "while True: print('again' * 1000)", limits=Limits(time_s=20, log_bytes=3 * MB)
    )

    assert said == "printed more than 3 MB"


def test_a_tool_that_prints_an_error_and_exits_well_is_caught_by_what_it_did_not_make(
    tmp_path: Path,
) -> None:
    made = tmp_path / "model.rknn"

    said = failure(tmp_path, "print('E build: Unsupported op GRU')\nreturn {}", produces=[made])

    assert said == "wrote no model.rknn: E build: Unsupported op GRU"


def test_an_empty_file_is_no_artefact(tmp_path: Path) -> None:
    made = tmp_path / "model.tflite"

    said = failure(tmp_path, f"open({str(made)!r}, 'w').close()\nreturn {{}}", produces=[made])

    assert said == "wrote an empty model.tflite: it said nothing"


def test_a_file_of_an_earlier_call_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    made = tmp_path / "model.tflite"
    made.write_bytes(b"of yesterday")

    assert failure(tmp_path, "return {}", produces=[made]).startswith("wrote no model.tflite")


def test_half_a_file_does_not_outlive_the_tool_that_died_writing_it(tmp_path: Path) -> None:
    made = tmp_path / "model.tflite"
    body = f"open({str(made)!r}, 'w').write('TFL3')\nos.abort()"

    assert failure(tmp_path, body, produces=[made]) == "died by signal 6 (SIGABRT)"
    assert not made.exists()


@pytest.mark.parametrize("suffix", [".npz", ".onnx", ".rknn", ".tflite"])
def test_a_file_that_is_not_of_its_kind_is_no_artefact(suffix: str, tmp_path: Path) -> None:
    made = tmp_path / f"model{suffix}"
    body = f"open({str(made)!r}, 'w').write('disk quota exceeded')\nreturn {{}}"

    said = failure(tmp_path, body, produces=[made])

    assert said == f"wrote a model{suffix} that is no {suffix} file: it said nothing"
    assert not made.exists()


def test_a_model_that_is_cut_off_is_no_artefact(tmp_path: Path) -> None:
    whole, made = write_convnet(tmp_path / "whole.tflite"), tmp_path / "model.tflite"
    body = (
        f"whole = open({str(whole)!r}, 'rb').read()\n"
        f"open({str(made)!r}, 'wb').write(whole[:100])\nreturn {{}}"
    )

    assert "no .tflite file" in failure(tmp_path, body, produces=[made])


def test_what_was_made_is_left_where_it_was_asked_for(tmp_path: Path) -> None:
    made = tmp_path / "model.hef"

    run(tmp_path, f"open({str(made)!r}, 'w').write('HEF')\nreturn {{}}", produces=[made])

    assert made.read_text() == "HEF"


def test_a_reply_that_is_no_json_is_refused(tmp_path: Path) -> None:
    assert "not JSON serializable" in failure(tmp_path, "return {'path': object()}")


def test_a_tool_chain_that_is_not_ready_says_how_to_add_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path / "none"))

    with pytest.raises(ToolChainMissing, match=r"tool chain vela .* is not ready") as caught:
        drive("vela", {}, driver="vela", folder=tmp_path)

    assert caught.value.hint is not None
    assert caught.value.hint.endswith("edgekit doctor --install vela")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_tool_outlives_the_build_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    started = tmp_path / "started"
    body = f"""\
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
with open({str(started)!r} + ".part", "w") as file:
    file.write(f"{{os.getpid()}} {{child.pid}}")
os.rename({str(started)!r} + ".part", {str(started)!r})
time.sleep(60)"""
    command = [sys.executable, "-c", DRIVE, str(driver(tmp_path, body)), str(tmp_path / "scratch")]

    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as build:
        while not started.exists():
            assert build.poll() is None
            time.sleep(0.05)
        build.send_signal(number)

    for process in numbers_in(started):
        wait_until_gone(process)


def test_only_the_newest_logs_are_kept() -> None:
    for second in range(logs.KEPT + 20):
        logs.new("vela", "vela", now_s=1_800_000_000 + second).touch()

    kept = sorted(logs.home().iterdir())

    assert len(kept) == logs.KEPT
    assert kept[-1] == max(kept, key=lambda log: log.name)
    assert kept[0].name.startswith("20270115T080020")
