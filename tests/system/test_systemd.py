"""The service under a real systemd: the package in a Debian that is booted keeps its promises.

`make systemd-test` builds the package, makes the Debian with debootstrap and runs this as root. The
machine has no network. Where the waits of the unit would be long, a drop-in shortens them and
nothing else: a restart after 1 s instead of 10, a watchdog of 3 s instead of 60.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.signing import SigningKey, new_pair
from edgekit_runtime.slots import Slots
from edgekit_runtime.update import Installed, Record
from tests import bundles
from tests.system import machine
from tests.system.daemons import wait_for
from tests.system.machine import Machine

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("systemd")]

PACKAGE = os.environ.get("EDGEKIT_DEB", "")
BASE = os.environ.get("EDGEKIT_SYSTEMD_ROOT", "")
UNIT = "edgekitd.service"
CONFIG = "/etc/edgekit/device.toml"
DROP_IN = "/run/systemd/system/edgekitd.service.d/test.conf"
QUICK = "[Service]\nRestartSec=1\nWatchdogSec=3\n"
SERVES = "serves tiny 1.0.0"
QUESTION = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}]}
)


def write(board: Machine, path: str, text: str) -> None:
    """A file there, also below `/run`, which this machine does not see."""
    place = Path(f"/proc/{board.leader}/root{path}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def serves(board: Machine) -> bool:
    """Whether the model answers now."""
    try:
        return board.ask("POST", "/v2/models/tiny/infer", QUESTION)[0] == 200
    except OSError:
        return False


def send(board: Machine, number: signal.Signals) -> None:
    """A signal to the daemon, and to nothing else."""
    os.kill(int(board.process(UNIT).name), number)


def complaints(journal: str) -> list[str]:
    """What the daemon logged above the level of ordinary events, and its tracebacks."""
    said = [line.partition("]: ")[2] for line in journal.splitlines() if "edgekitd[" in line]
    return [
        line for line in said if not line.startswith("{") or json.loads(line)["level"] != "info"
    ]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file system of a Debian with the package's file in it."""
    if not PACKAGE or not BASE:
        pytest.skip("needs a package and a Debian that boots: make systemd-test brings both")
    if reason := machine.why_not():
        pytest.skip(reason)
    with machine.copied(Path(BASE), tmp_path_factory.mktemp("debian") / "root") as root:
        shutil.copy(PACKAGE, root / "package.deb")
        yield root


@pytest.fixture(scope="module")
def booted(debian: Path) -> Iterator[Machine]:
    with machine.booted(debian) as board:
        yield board


@pytest.fixture(scope="module")
def installed(booted: Machine) -> Machine:
    booted.run("dpkg", "--install", "/package.deb")
    return booted


@pytest.fixture(scope="module")
def begun(installed: Machine, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A board with a signed bundle, and what `device install` prints carried out."""
    folder = tmp_path_factory.mktemp("bundle")
    private, public = new_pair(folder / "keys")
    shutil.copy(public, installed.root / "etc/edgekit/release.pub")
    told = installed.run(
        *("edgekit", "device", "install", "--site", "test", "--id", "b", "--json"),
        *("--profile", "generic-x86_64", "--trust", "/etc/edgekit/release.pub"),
    )
    slots = Slots(installed.root / "var/lib/edgekit")
    with Bundle.open(bundles.write(folder, key=SigningKey.read(private))) as bundle:
        slots.install("tiny", "a", bundle)
        held = Installed(version="1.0.0", digest=bundle.digest)
    slots.write("tiny", Record(slots={"a": held}, active="a", previous=None))
    installed.run("chown", "-R", "edgekit:edgekit", "/var/lib/edgekit")
    for command in json.loads(told)["next"]:
        installed.run(*command.split())
    return installed


@pytest.fixture
def board(begun: Machine) -> Iterator[Machine]:
    """The board with its service running; afterwards its configuration is as it was."""
    config = (begun.root / CONFIG.lstrip("/")).read_text()
    begun.run("systemctl", "start", UNIT)
    yield begun
    write(begun, CONFIG, config)
    begun.run("rm", "--recursive", "--force", str(Path(DROP_IN).parent))
    begun.run("systemctl", "daemon-reload")
    begun.run("systemctl", "reset-failed", ok=False)


@pytest.fixture
def quick(board: Machine) -> Machine:
    """The board with shorter waits."""
    write(board, DROP_IN, QUICK)
    board.run("systemctl", "daemon-reload")
    board.run("systemctl", "restart", UNIT)
    return board


def test_the_package_installs_and_starts_nothing_of_itself(installed: Machine) -> None:
    assert installed.show(UNIT, "LoadState") == "loaded"
    assert installed.show(UNIT, "UnitFileState") == "disabled"
    assert installed.show(UNIT, "ActiveState") == "inactive"


def test_the_commands_of_the_installation_start_a_service_that_serves(begun: Machine) -> None:
    assert begun.show(UNIT, "UnitFileState") == "enabled"
    assert begun.show(UNIT, "ActiveState") == "active"
    assert serves(begun)
    assert "daemon running" in begun.run("edgekit", "device", "status")
    assert json.loads(begun.run("edgekit", "device", "doctor", "--json"))["ok"] is True


def test_the_service_is_active_only_once_the_daemon_says_that_it_serves(board: Machine) -> None:
    board.run("systemctl", "stop", UNIT)
    board.run("systemctl", "start", "--no-block", UNIT)
    wait_for(lambda: board.show(UNIT, "MainPID") != "0", "a process")
    send(board, signal.SIGSTOP)  # long before it can have opened an engine

    held = [board.show(UNIT, "ActiveState") for _ in range(20)]
    answered = serves(board)
    send(board, signal.SIGCONT)
    wait_for(lambda: board.show(UNIT, "ActiveState") == "active", "the service")

    assert set(held) == {"activating"}
    assert not answered
    assert serves(board)


def test_its_status_says_what_it_serves(board: Machine) -> None:
    assert f'Status: "{SERVES}"' in board.run("systemctl", "status", "--no-pager", UNIT)


def test_a_model_that_does_not_serve_is_named_in_the_status(board: Machine) -> None:
    models = "/var/lib/edgekit/models"
    board.run("cp", "--archive", models, "/root/models")
    (board.root / f".{models}/tiny/a/manifest.json").write_text("{}")

    board.run("systemctl", "restart", UNIT)
    said = board.show(UNIT, "StatusText")
    board.run("systemctl", "stop", UNIT)
    board.run("rm", "--recursive", models)
    board.run("mv", "/root/models", models)
    board.run("systemctl", "start", UNIT)

    assert said.startswith("serves nothing; tiny does not (")
    assert board.show(UNIT, "StatusText") == SERVES


def test_a_daemon_that_is_killed_is_started_anew(quick: Machine) -> None:
    before = quick.show(UNIT, "MainPID")
    send(quick, signal.SIGKILL)
    wait_for(lambda: quick.show(UNIT, "NRestarts") == "1" and serves(quick), "the next daemon")

    assert quick.show(UNIT, "MainPID") != before


def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_started_anew(quick: Machine) -> None:
    start = quick.cursor()
    send(quick, signal.SIGSTOP)
    wait_for(lambda: quick.show(UNIT, "NRestarts") == "1" and serves(quick), "the next daemon")

    assert "Watchdog timeout" in quick.journal(cursor=start)


def test_a_daemon_that_lives_is_left_alone_by_the_watchdog(quick: Machine) -> None:
    start = quick.cursor()
    quick.run("sleep", "8")

    assert quick.show(UNIT, "NRestarts") == "0"
    assert "Watchdog" not in quick.journal(cursor=start)


def test_stopping_ends_in_good_order(board: Machine) -> None:
    start = board.cursor()
    board.run("systemctl", "stop", UNIT)
    journal = board.journal(cursor=start)

    assert board.show(UNIT, "Result") == "success"
    assert (board.show(UNIT, "ExecMainCode"), board.show(UNIT, "ExecMainStatus")) == ("1", "0")
    assert "Deactivated successfully" in journal
    assert "daemon stops" in journal
    assert complaints(journal) == []


def test_a_restart_under_requests_gives_whole_answers_and_serves_on(board: Machine) -> None:
    over, found = threading.Event(), set[str]()

    def ask() -> None:
        while not over.is_set():
            try:
                status, body = board.ask("POST", "/v2/models/tiny/infer", QUESTION)
            except OSError:
                continue
            found.add(f"{status} {body}")

    start = board.cursor()
    client = threading.Thread(target=ask)
    client.start()
    try:
        wait_for(lambda: found, "an answer")
        board.run("systemctl", "restart", UNIT)
        once_more = serves(board)
    finally:
        over.set()
        client.join()

    assert once_more
    assert len(found) == 1, "each answer is the same"
    assert complaints(board.journal(cursor=start)) == []


@pytest.mark.parametrize("folder", ["/etc", "/usr", "/opt/edgekit", "/var/lib", "/var/log", "/"])
def test_it_can_write_nowhere_but_in_its_state_folder(board: Machine, folder: str) -> None:
    assert inside(board, f"echo > {folder}/trace") == "Read-only file system"
    assert inside(board, "echo > /var/lib/edgekit/trace && rm /var/lib/edgekit/trace") == ""


def test_homes_and_other_programs_files_are_closed_to_it(board: Machine) -> None:
    for folder in ("home/somebody", "root"):
        (board.root / folder).mkdir(exist_ok=True)
        (board.root / folder / "secret").write_text("secret")
    write(board, "/tmp/secret", "secret")

    for path in ("/home/somebody/secret", "/root/secret", "/tmp/secret"):
        assert board.run("cat", path) == "secret"
        assert inside(board, f"exec 3< {path}") == "No such file"


def test_it_has_no_capability_and_a_filter_of_system_calls(board: Machine) -> None:
    lines = (board.process(UNIT) / "status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    sets = {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Uid"].split() == [board.run("id", "--user", "edgekit").strip()] * 4


def test_a_worker_process_is_confined_as_the_daemon_is(board: Machine) -> None:
    config = board.run("cat", CONFIG)
    write(board, CONFIG, config.replace("[serve]", '[serve]\nworkers = "process"'))
    # As for a board whose engines run on the CPU alone.
    write(board, DROP_IN, "[Service]\nMemoryDenyWriteExecute=yes\n")
    board.run("systemctl", "daemon-reload")
    board.run("systemctl", "restart", UNIT)

    daemon = board.process(UNIT)
    children = (daemon / f"task/{daemon.name}/children").read_text().split()
    statuses = [Path(f"/proc/{child}/status").read_text() for child in children]

    assert serves(board)
    assert statuses
    assert all("Seccomp:\t2\n" in one and "NoNewPrivs:\t1\n" in one for one in statuses)


def test_its_memory_is_bounded_as_asked(board: Machine) -> None:
    board.run("edgekit", "device", "install", "--memory-mb", "512")
    board.run("systemctl", "daemon-reload")
    bounded = board.show(UNIT, "MemoryMax"), board.show(UNIT, "MemoryHigh")
    board.run("edgekit", "device", "install")
    board.run("systemctl", "daemon-reload")

    assert bounded == (str(512 << 20), str(460 << 20))
    share = int(board.show(UNIT, "MemoryMax")) / os.sysconf("SC_PHYS_PAGES")
    assert share / os.sysconf("SC_PAGE_SIZE") == pytest.approx(0.8, abs=0.01)


def test_the_kernel_holds_the_bound_of_its_memory(board: Machine) -> None:
    group = board.show(UNIT, "ControlGroup")
    bound = board.run("sh", "-c", f"cat /sys/fs/cgroup{group}/memory.max 2>&1", ok=False).strip()
    if not bound.isdigit():
        pytest.skip(
            "no memory controller reaches the machine: needs cgroup v2, handed on"
            " (systemd-run --scope -p Delegate=yes)"
        )
    assert bound == board.show(UNIT, "MemoryMax")


def test_a_wrong_configuration_is_told_and_not_tried_for_ever(quick: Machine) -> None:
    config = quick.run("cat", CONFIG)
    write(quick, CONFIG, config.replace("[serve]", "[serve]\ncolour = 1"))
    quick.run("systemctl", "restart", UNIT, ok=False)
    quick.run("sleep", "3")  # a restart would come after 1 s
    status = quick.run("systemctl", "status", "--no-pager", "--full", UNIT, ok=False)

    assert quick.show(UNIT, "ActiveState") == "failed"
    assert quick.show(UNIT, "NRestarts") == "0"
    assert f'Status: "failed: {CONFIG}: Object contains unknown field `colour`' in status
    assert "status=78/CONFIG" in quick.journal()
    write(quick, CONFIG, config)
    quick.run("systemctl", "start", UNIT)
    assert serves(quick)


def test_what_may_pass_is_told_and_tried_until_it_has_passed(quick: Machine) -> None:
    quick.run("systemctl", "stop", UNIT)
    taker = ("python3", "-m", "http.server", "--bind", "127.0.0.1", "8500")
    quick.run("systemd-run", "--quiet", "--unit=taker", "--collect", *taker)
    # 8500 as the kernel writes it.
    wait_for(lambda: ":2134 " in quick.run("cat", "/proc/net/tcp"), "a port that is taken")
    quick.run("systemctl", "start", UNIT, ok=False)
    wait_for(lambda: int(quick.show(UNIT, "NRestarts")) > 1, "further tries")
    said = wait_for(lambda: quick.show(UNIT, "StatusText"), "a reason")
    quick.run("systemctl", "stop", "taker")
    wait_for(lambda: quick.show(UNIT, "ActiveState") == "active", "the service")

    assert said.startswith("failed: ")
    assert "127.0.0.1:8500" in said
    assert serves(quick)


def test_the_package_again_restarts_the_service_and_keeps_its_state(board: Machine) -> None:
    before = board.show(UNIT, "MainPID")
    board.run("dpkg", "--install", "--force-confold", "/package.deb")

    assert board.show(UNIT, "MainPID") not in (before, "0")
    assert serves(board)


def test_a_board_with_a_read_only_root_serves_after_its_start(
    board: Machine, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    options = ("--read-only", f"--bind={state}:/var/lib/edgekit")
    with machine.copied(board.root, tmp_path / "root") as root:
        # Apart, as on a partition of its own.
        (root / "var/lib/edgekit").rename(state)
        (root / "var/lib/edgekit").mkdir()
        record = (state / "models/tiny/state.json").read_bytes()
        with machine.booted(root, *options) as again:
            wait_for(lambda: serves(again), "the model")
            refused = again.run("sh", "-c", "echo > /etc/trace || echo refused")
            text = again.show(UNIT, "StatusText")
            again.run("systemctl", "stop", UNIT)
            journal = again.journal()

    assert refused == "refused\n"
    assert text == SERVES
    assert complaints(journal) == []
    assert (state / "models/tiny/state.json").read_bytes() == record


def test_purging_ends_the_service_and_leaves_nothing(board: Machine) -> None:
    find = ("find", "/", "/run", "/tmp", "-xdev", "-name", "*edgekit*")
    assert {"/etc/edgekit", "/opt/edgekit", "/run/edgekit"} <= set(board.run(*find).split())

    board.run("dpkg", "--purge", "edgekit")

    assert board.run(*find) == ""
    assert board.show(UNIT, "LoadState") == "not-found"
    assert "edgekit" not in board.run("cat", "/etc/passwd", "/etc/group")
    assert "edgekit" not in board.run("systemctl", "list-units", "--all", "--no-legend")


def inside(board: Machine, script: str) -> str:
    """Why root itself cannot do something among the daemon's mounts; empty where it can."""
    pid = board.show(UNIT, "MainPID")
    command = f"nsenter --target={pid} --mount sh -c '{script}' 2>&1"
    said = board.run("sh", "-c", command, ok=False).strip()
    return said.rpartition(": ")[2]
