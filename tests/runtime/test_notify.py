"""What the service manager hears, over a real socket, and how it hears nothing from a dead part."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import ConfigError, StorageError
from edgekit.messages import ModelState
from edgekit_runtime.notify import Misconfigured, Notifier, keep_alive, summary


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The address in the environment, and the manager's own end of it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgekit-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0"))
        listening.settimeout(5)
        yield name, listening


def heard(listening: socket.socket) -> str:
    return listening.recv(4096).decode()


def test_the_manager_hears_each_state(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})

    notifier.ready()
    notifier.status("serving\n2 models")
    notifier.stopping()
    notifier.close()

    assert [heard(listening) for _ in range(3)] == [
        "READY=1",
        "STATUS=serving 2 models",
        "STOPPING=1",
    ]
    assert notifier.interval_s is None


def test_what_the_manager_left_is_taken_out_of_the_environment() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/none",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }

    notifier = Notifier.from_environment(environment)
    notifier.close()

    assert notifier.interval_s == 3
    assert environment == {"PATH": "/bin"}


def test_a_watchdog_of_another_process_is_not_fed() -> None:
    environment = {"NOTIFY_SOCKET": "/run/none", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}

    notifier = Notifier.from_environment(environment)
    notifier.close()

    assert notifier.interval_s is None


def test_without_a_manager_nothing_is_sent() -> None:
    notifier = Notifier.from_environment({})
    notifier.ready()
    asyncio.run(keep_alive(notifier, {}, says=str))
    notifier.close()


def test_a_manager_that_is_gone_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "gone"))
    notifier.ready()
    notifier.close()

    assert "service manager not reached" in caplog.text


def test_signs_of_life_end_with_a_thread_that_must_live(
    manager: tuple[str, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    address, listening = manager
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    notifier = Notifier(address, interval_s=0.06)

    async def live() -> None:
        parts = {"update": thread.is_alive}
        task = asyncio.create_task(keep_alive(notifier, parts, says=lambda: "serves nothing"))
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, heard, listening) == "WATCHDOG=1"
        assert await loop.run_in_executor(None, heard, listening) == "STATUS=serves nothing"
        end.set()
        thread.join()
        while (said := await loop.run_in_executor(None, heard, listening)) == "WATCHDOG=1":
            pass
        assert said == "STATUS=not alive: update"
        listening.settimeout(0.3)
        with pytest.raises(TimeoutError):
            await loop.run_in_executor(None, heard, listening)
        task.cancel()

    asyncio.run(live())
    notifier.close()
    assert "no sign of life is sent any more" in caplog.text


def test_what_serves_is_said_again_only_where_it_has_changed(
    manager: tuple[str, socket.socket],
) -> None:
    address, listening = manager
    notifier = Notifier(address, interval_s=0.03)
    serving = ["one"]

    async def live() -> None:
        task = asyncio.create_task(keep_alive(notifier, {}, says=lambda: serving[0]))
        loop = asyncio.get_running_loop()
        first = [await loop.run_in_executor(None, heard, listening) for _ in range(4)]
        serving[0] = "two"
        while (said := await loop.run_in_executor(None, heard, listening)) == "WATCHDOG=1":
            pass
        task.cancel()
        assert first == ["WATCHDOG=1", "STATUS=one", "WATCHDOG=1", "WATCHDOG=1"]
        assert said == "STATUS=two"

    asyncio.run(live())
    notifier.close()


def test_the_summary_names_what_answers_and_why_the_rest_does_not() -> None:
    states = {
        "eye": ModelState(version="2.0.0", state="fetching", target="2.1.0"),
        "ear": ModelState(state="failed", reason="golden_mismatch"),
    }

    assert summary([("eye", "2.0.0")], states) == "serves eye 2.0.0; ear does not (golden_mismatch)"
    assert summary([], {"eye": ModelState()}) == "serves nothing; eye does not (idle)"
    assert summary([], {}) == "serves nothing"


def test_the_manager_is_told_of_a_configuration_that_no_start_gets_past(
    manager: tuple[str, socket.socket],
) -> None:
    address, listening = manager
    notifier = Notifier(address)

    with pytest.raises(Misconfigured, match="no site") as raised, notifier.telling_failure():
        raise ConfigError("no site", hint="name one")
    notifier.close()

    assert raised.value.exit_code == os.EX_CONFIG
    assert raised.value.hint == "name one"
    assert heard(listening) == "STATUS=failed: no site (name one)"


def test_an_error_that_may_pass_keeps_its_exit_code(manager: tuple[str, socket.socket]) -> None:
    address, listening = manager
    notifier = Notifier(address)

    with pytest.raises(StorageError) as raised, notifier.telling_failure():
        raise StorageError("disk \udcff full")
    notifier.close()

    assert raised.value.exit_code == StorageError.exit_code
    assert heard(listening) == "STATUS=failed: disk ? full"


def test_without_a_manager_a_wrong_configuration_keeps_its_exit_code() -> None:
    with pytest.raises(ConfigError) as raised, Notifier(None).telling_failure():
        raise ConfigError("no site")

    assert raised.value.exit_code == ConfigError.exit_code
