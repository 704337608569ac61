"""`edgekit bench --device` against a real SSH server on loopback, and what can go wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import onnx
import pytest

from edgekit.bundle import Bundle
from edgekit.signing import PublicKey, SigningKey, new_pair
from edgekit_runtime.board import remote, ship, ssh
from tests import bundles
from tests.system.boards import SshBoard, board, wait_for

pytestmark = [pytest.mark.system]

BASE_PYTHON = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
HEAVY_BYTES = 192 << 20


@pytest.fixture
def on(tmp_path: Path) -> Iterator[SshBoard]:
    """A board with a Python, and nothing installed for it."""
    with board(tmp_path / "board", pythons={"python3": BASE_PYTHON}) as running:
        yield running


class Workstation:
    """A key, a bundle that it signed, and the command with what all of its calls share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key, self.public = new_pair(folder / "keys")
        self.bundle = self.write()

    def write(self, **options: Any) -> Path:
        """A bundle, signed."""
        return bundles.write(self.folder, key=SigningKey.read(self.key), **options)

    def bench(self, on: SshBoard, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """The command, with packages that the board has, to its end."""
        return _finished(self.command(on, *_here(), *words))

    def command(
        self, on: SshBoard, *words: str | Path, device: str | None = None
    ) -> list[str | Path]:
        trust = ("--trust", self.public, "--ssh-config", on.ssh_config)
        where = ("--device", device or on.device, "--seconds", "0.3")
        return [sys.executable, "-m", "edgekit", "bench", self.bundle, *trust, *where, *words]


@pytest.fixture
def work(tmp_path: Path) -> Workstation:
    return Workstation(tmp_path)


def test_a_whole_run_brings_figures_back_and_into_the_report(
    on: SshBoard, work: Workstation, tmp_path: Path
) -> None:
    model, out = tmp_path / "net.onnx", tmp_path / "out"
    model.write_bytes(bundles.mlp())

    done = work.bench(on, "--against", model, "--out", out, "--sign-key", work.key, "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["label"] for one in found["results"]] == ["tiny 1.0.0 float", "net.onnx"]
    assert all(0 < one["p50_ms"] <= one["p90_ms"] <= one["p99_ms"] for one in found["results"])
    assert all(one["cpu_ms"] > 0 for one in found["results"])
    assert found["golden"][0]["samples"] == 3
    assert (found["evidence"], found["mismatches"], found["void"]) == ("executed", [], [])
    assert json.loads((out / f"{work.bundle.stem}.bench.json").read_bytes()) == found
    with Bundle.open(work.bundle) as before, Bundle.open(out / work.bundle.name) as after:
        assert after.digest == before.digest
        assert after.verify([PublicKey.read(work.public)]).pem == work.public.read_bytes()
        assert json.loads(after.read("reports/board.json")) == found
    assert on.running() == []
    assert [entry.name for entry in (on.cache / "edgekit").iterdir()] == ["bench"]
    assert os.listdir(on.cache) == ["edgekit"]


def test_what_is_on_the_board_is_not_carried_again(on: SshBoard, work: Workstation) -> None:
    first, second = work.bench(on), work.bench(on)

    assert "carrying tiny-1.0.0" in first.stderr
    assert second.returncode == 0, second.stderr
    assert "carrying" not in second.stderr


@pytest.mark.slow
def test_a_board_with_a_bare_python_gets_all_that_it_needs(
    on: SshBoard, work: Workstation, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("uv") is None:
        pytest.skip("wheels are fetched with uv, which is not here")
    monkeypatch.setenv(
        "UV_CACHE_DIR", os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    )

    done = _finished(work.command(on, "--json"), timeout_s=400)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["packages"]["onnxruntime"] == found["engines"]["onnxruntime"]
    assert found["results"][0]["variant"] == "float"


def test_names_with_blanks_and_quotes_arrive_as_they_are(
    on: SshBoard, work: Workstation, tmp_path: Path
) -> None:
    folder = tmp_path / 'it\'s a "folder"; $(touch here) `id`'
    folder.mkdir()
    model = folder / "the model's $HOME.onnx"
    model.write_bytes(bundles.mlp())
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    done = _finished(work.command(on, "--against", model, "--remote-python", str(python), "--json"))

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][1]["label"] == model.name


def test_a_link_cut_while_carrying_goes_on_where_it_ended(
    on: SshBoard, work: Workstation, tmp_path: Path
) -> None:
    model = _heavy(tmp_path / "heavy.onnx")
    with _started(work.command(on, *_here(), "--against", model)) as running:
        wait_for(lambda: _partly_there(on) > 1 << 20)
        on.cut()
        code, told = running.wait(60), _text(running.stderr)
    there = _partly_there(on)

    again = work.bench(on, "--against", model)

    assert code == 7, told
    assert "hint: " in told
    assert "it goes on where it ended" in told
    assert 1 << 20 < there < HEAVY_BYTES
    assert again.returncode == 0, again.stderr
    assert f"{there / 1e6:.1f} MB are there" in again.stderr


def test_a_link_cut_during_the_run_is_told_and_leaves_no_process(
    on: SshBoard, work: Workstation
) -> None:
    with _measuring(on, work) as running:
        on.cut()
        code, told = running.wait(60), _text(running.stderr)

    assert code == 7, told
    assert "while measuring" in told
    wait_for(lambda: on.running() == [])


def test_ctrl_c_ends_the_run_on_the_board_before_the_command_ends(
    on: SshBoard, work: Workstation
) -> None:
    with _measuring(on, work) as running:
        running.send_signal(signal.SIGINT)
        code = running.wait(60)

    assert code == 130
    assert on.running() == []


def test_a_killed_workstation_leaves_no_process_on_the_board(
    on: SshBoard, work: Workstation
) -> None:
    with _measuring(on, work) as running:
        running.kill()
        running.wait(60)

    wait_for(lambda: on.running() == [])


def test_a_host_key_that_is_not_known_or_another_is_refused(
    on: SshBoard, work: Workstation
) -> None:
    on.know("other")
    changed = work.bench(on)
    on.forget()
    unknown = work.bench(on)

    assert (changed.returncode, unknown.returncode) == (7, 7)
    assert "another host key than the one that ssh knows" in changed.stderr
    assert "does not know the host key" in unknown.stderr
    assert "compare the fingerprint" in unknown.stderr
    assert not on.cache.exists()


def test_a_user_that_is_not_let_in_is_told_how_to_be(on: SshBoard, work: Workstation) -> None:
    done = _finished(work.command(on, device=f"nobody-here@127.0.0.1:{on.port}"))

    assert done.returncode == 7
    assert "does not let us in" in done.stderr
    assert "ssh-copy-id" in done.stderr


def test_a_board_that_does_not_answer_is_named(on: SshBoard, work: Workstation) -> None:
    on.close()

    done = work.bench(on)

    assert done.returncode == 7
    assert "Connection refused" in done.stderr


def test_a_board_without_python_is_refused(tmp_path: Path, work: Workstation) -> None:
    with board(tmp_path / "bare", pythons={}) as on:
        done = _finished(work.command(on))

        assert done.returncode == 5
        assert "has no python3" in done.stderr
        assert "--remote-python" in done.stderr
        assert not on.cache.exists()


def test_a_python_that_is_too_old_is_named_with_its_version(
    tmp_path: Path, work: Workstation
) -> None:
    old = [path for path in _old_pythons() if path.exists()]
    if not old:
        pytest.skip("no Python older than 3.10 is here")
    for number, python in enumerate(old):
        with board(tmp_path / str(number), pythons={"python3": python}) as on:
            done = _finished(work.command(on))

            assert done.returncode == 5
            assert "3.10 or newer" in done.stderr
            assert python.name.removeprefix("python") in done.stderr
            assert not on.cache.exists()


def test_the_newest_of_several_pythons_is_found(tmp_path: Path, work: Workstation) -> None:
    old = [path for path in _old_pythons() if path.exists()]
    if not old:
        pytest.skip("no Python older than 3.10 is here")
    newer = f"python3.{sys.version_info.minor}"
    with (
        board(tmp_path / "both", pythons={"python3": old[0], newer: BASE_PYTHON}) as on,
        ssh.Link(ssh.parse(on.device), config=on.ssh_config) as link,
    ):
        python, found = remote.find_python(link, None)

    assert python == newer
    assert found.python.startswith(f"3.{sys.version_info.minor}.")


def test_a_board_without_room_is_told_and_left_as_it_was(on: SshBoard, work: Workstation) -> None:
    on.cache.mkdir()
    mount: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", on.cache]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can make a small file system")
    try:
        done = work.bench(on)

        assert done.returncode == 2
        assert "on the board: " in done.stderr
        assert "1.0 MB free" in done.stderr
        assert not list(on.cache.rglob("*.part"))
    finally:
        subprocess.run(["umount", on.cache], check=True)


def test_a_bundle_that_is_not_reproduced_there_is_not_timed(
    on: SshBoard, work: Workstation, tmp_path: Path
) -> None:
    work.bundle = work.write(version="1.0.1", broken_golden=True)

    done = work.bench(on, "--out", tmp_path / "out")

    assert done.returncode == 5
    assert "output 'y'" in done.stderr
    assert "measuring" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_nobody_trusted_signed_is_never_carried(
    on: SshBoard, work: Workstation, tmp_path: Path
) -> None:
    work.bundle = bundles.write(tmp_path / "stranger")

    done = work.bench(on)
    signed = work.bench(on, "--insecure", "--out", tmp_path / "out", "--sign-key", work.key)

    assert done.returncode == 4
    assert signed.returncode == 2
    assert "--sign-key would make it so" in signed.stderr
    assert not on.cache.exists()


def test_a_file_that_changed_on_the_board_is_not_run(on: SshBoard, work: Workstation) -> None:
    assert work.bench(on).returncode == 0
    (carried,) = (on.cache / "edgekit" / "bench" / "files").iterdir()
    carried.write_bytes(b"another bundle")

    refused, again = work.bench(on), work.bench(on)

    assert refused.returncode == 4
    assert "has changed on the board" in refused.stderr
    assert again.returncode == 0, again.stderr


def test_a_throttled_run_is_void_and_says_why(
    on: SshBoard, work: Workstation, tmp_path: Path
) -> None:
    zone = tmp_path / "root" / "sys" / "class" / "thermal"
    for name, text in {
        "thermal_zone0/temp": "91000",
        "thermal_zone0/type": "soc-thermal",
        "cooling_device0/type": "cpufreq-cpu0",
        "cooling_device0/cur_state": "4",
    }.items():
        (zone / name).parent.mkdir(parents=True, exist_ok=True)
        (zone / name).write_text(text)
    with Bundle.open(work.bundle) as packed:
        request = remote.Request(
            bundles=((ship.file(work.bundle), packed.manifest),),
            seconds=0.2,
            runs=10,
            python=sys.executable,
            root=str(tmp_path / "root"),
        )

        found = remote.bench(on.device, request, say=print, ssh_config=on.ssh_config)

    assert found.void == (
        "the board was throttled: cooling by cpufreq-cpu0 at step 4 (first seen at 0.0 s)",
    )
    assert found.conditions.before.temperatures_c == {"zone0 soc-thermal": 91.0}
    assert found.results[0].runs == 10


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--out", "somewhere"), "--out is for --device"),
        (("--device", "a b"), "is not [user@]host[:port]"),
        (("--device", "pi@board", "--sign-key", "k"), "--sign-key needs --out"),
        (("--device", "pi@board", "--max-clock-drop", "2"), "--max-clock-drop"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_done(
    work: Workstation, words: tuple[str, ...], told: str
) -> None:
    command: list[str | Path] = [sys.executable, "-m", "edgekit", "bench", work.bundle]
    command += ["--trust", work.public]

    done = _finished([*command, *words])

    assert done.returncode == 2
    assert told in done.stderr


def _here() -> tuple[str, str]:
    return "--remote-python", sys.executable


def _finished(
    command: list[str | Path], *, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@contextmanager
def _started(command: list[str | Path]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def _measuring(on: SshBoard, work: Workstation) -> Iterator[subprocess.Popen[str]]:
    """A long run, from when it measures on the board."""
    long = ("--seconds", "120", "--runs", "1000000000")
    with _started(work.command(on, *_here(), *long)) as running:
        assert running.stderr is not None
        assert any("measuring" in line for line in running.stderr), "it never measured"
        assert on.running()
        yield running


def _text(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.read()


def _heavy(path: Path) -> Path:
    """A small model that takes its time to be carried."""
    model = onnx.load_from_string(bundles.mlp())
    model.doc_string = "x" * HEAVY_BYTES
    path.write_bytes(model.SerializeToString())
    return path


def _partly_there(on: SshBoard) -> int:
    return sum(part.stat().st_size for part in on.cache.rglob("*.part"))


def _old_pythons() -> list[Path]:
    """Pythons below the floor, where pyenv has them: one that runs the agent, one that does not."""
    versions = Path.home() / ".pyenv" / "versions"
    found = []
    for minor in ("3.6", "3.9"):
        found += sorted(versions.glob(f"{minor}.*/bin/python{minor}"))[:1]
    return found
