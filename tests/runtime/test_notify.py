"""What the service manager hears, over a real socket, and how it hears nothing from a dead part."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit_runtime.notify import Notifier, keep_alive


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
    asyncio.run(keep_alive(notifier, {}))
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
        task = asyncio.create_task(keep_alive(notifier, {"update": thread.is_alive}))
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, heard, listening) == "WATCHDOG=1"
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
