"""What boards meet in the field, each with the reason code that it is told by, on a real fleet.

Whatever happens, the version that serves goes on serving, and what was refused goes on later.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekit import certificates
from edgekit.fleet import authority
from edgekit.fleet.authority import Authority
from edgekit_runtime.linkage import Trouble
from edgekit_runtime.update import Reason
from tests.faults import Conditions, LinkProxy
from tests.system.daemons import EdgeDaemon, wait_for
from tests.system.enrolled import SITE, Fleet, fleet

pytestmark = [pytest.mark.system, pytest.mark.slow]

# paho leaves it to the collector to close a socket whose handshake failed.
WARNINGS = ("-W", "error", "-W", "ignore::ResourceWarning")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet")) as made:
        for number in range(3):
            made.publish(f"1.{number}.0", seed=number)
        yield made


@pytest.fixture
def board(running: Fleet, request: pytest.FixtureRequest) -> str:
    """A name that no other test has."""
    return str(request.node.originalname).replace("test_", "").replace("_", "-")[:40].strip("-")


@contextmanager
def serving(
    running: Fleet, name: str, *, more: str = "", settings: str = ""
) -> Iterator[EdgeDaemon]:
    """An enrolled device that serves 1.0.0."""
    device = running.device(name, more=more, settings=settings)
    device.warnings = WARNINGS
    device.start()
    try:
        running.rollout("1.0.0", name=name)
        wait_for(lambda: running.state(name).get("state") == "confirmed", "the first version")
        yield device
    finally:
        if device.process is not None and device.process.poll() is None:
            device.stop()
        print(device.log[-3000:])  # noqa: T201
        assert "Traceback" not in device.log


def refused(running: Fleet, name: str) -> str | None:
    """The reason by which the device refused what it was asked."""
    state = running.state(name)
    return state.get("reason") if state.get("state") in ("failed", "rolled_back") else None


def link_reason(device: EdgeDaemon) -> str | None:
    path = device.state / "link.json"
    return json.loads(path.read_bytes()).get("reason") if path.exists() else None


def events_of(running: Fleet, name: str, kind: str) -> list[dict[str, Any]]:
    return [e for e in running.events(kind) if e["device"] == f"{SITE}/{name}"]


def in_namespace(script: str, *words: str | Path) -> Sequence[str]:
    """A command that runs another one after `script`, in a mount namespace of its own."""
    command = ["unshare", "--mount", "sh", "-ec", f'{script}; shift {len(words)}; exec "$@"', "sh"]
    command += [str(word) for word in words]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"needs the right to mount: {tried.stderr.strip()}")
    return command


def test_no_room_for_the_second_slot(running: Fleet, board: str) -> None:
    with serving(running, board) as device:
        device.stop()
        configure(device, reserve_bytes=1 << 39)
        device.start()
        running.rollout("1.1.0", name=board)
        wait_for(lambda: refused(running, board) == Reason.NO_ROOM.value, "the refusal")
        assert "bytes" in running.state(board)["detail"]
        assert device.versions("tiny") == ["1.0.0"]


def test_a_full_disk(running: Fleet, board: str) -> None:
    """What the disk cannot keep is refused by its reason, and goes on when there is room again."""
    with small_disk(running, board, size="6m") as (device, inside):
        running.rollout("1.0.0", name=board)
        wait_for(lambda: running.state(board).get("state") == "confirmed", "the first version")
        filler = inside / "filler"
        fill(filler)
        running.rollout("1.1.0", name=board)
        wait_for(
            lambda: refused(running, board) in (Reason.DISK_FULL.value, Reason.NO_ROOM.value),
            "the refusal",
        )
        assert device.versions("tiny") == ["1.0.0"]
        filler.unlink()
        wait_for(lambda: device.versions("tiny") == ["1.1.0"], "what was refused")


def test_a_state_folder_that_cannot_be_written(running: Fleet, board: str) -> None:
    with serving(running, board) as device:
        assert device.stop() == 0
        script = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"'
        device.prefix = in_namespace(script, device.state)
        device.start()
        wait_for(lambda: device.versions("tiny") == ["1.0.0"], "the installed version")
        running.rollout("1.1.0", name=board)
        wait_for(lambda: refused(running, board) == Reason.READ_ONLY.value, "the refusal")
        assert device.versions("tiny") == ["1.0.0"]
        device.stop()
        device.prefix = ()
        device.start()
        wait_for(lambda: device.versions("tiny") == ["1.1.0"], "what was refused")


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs faketime; make system-deps installs it")
def test_a_clock_that_is_a_year_behind(running: Fleet, board: str) -> None:
    with serving(running, board) as device:
        device.stop()
        device.environment = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "-365d"}
        device.start()
        wait_for(lambda: device.versions("tiny") == ["1.0.0"], "the installed version")
        wait_for(lambda: link_reason(device) == Trouble.CLOCK_WRONG.value, "the reason")
        device.stop()
        device.environment = {}
        device.start()
        told = wait_for(lambda: events_of(running, board, "link_refused"), "the event")
        assert told[0]["facts"]["reason"] == Trouble.CLOCK_WRONG.value


def test_a_certificate_that_has_expired(running: Fleet, board: str) -> None:
    with serving(running, board) as device:
        device.stop()
        expire(running, device)
        device.start()
        wait_for(lambda: device.versions("tiny") == ["1.0.0"], "the installed version")
        wait_for(lambda: link_reason(device) == Trouble.CERTIFICATE_EXPIRED.value, "the reason")
        assert '"certificate_expired"' in device.log


def test_a_device_that_was_revoked(running: Fleet, board: str) -> None:
    """The live session ends, and the broker lets it in no more."""
    with serving(running, board) as device:
        running.run("fleet", "revoke", f"{SITE}/{board}", "--fleet", running.folder.path)
        refusals = (Trouble.BROKER_REFUSED.value, Trouble.CERTIFICATE_REFUSED.value)
        wait_for(lambda: link_reason(device) in refusals, "the reason")
        assert device.versions("tiny") == ["1.0.0"]


def test_a_broker_that_is_gone(running: Fleet, board: str) -> None:
    with LinkProxy(("127.0.0.1", running.port)) as proxy:
        settings = f'broker = "mqtts://127.0.0.1:{proxy.port}"'
        with serving(running, board, settings=settings) as device:
            proxy.set(Conditions(refuses=True))
            proxy.cut("rst")
            wait_for(lambda: link_reason(device) == Trouble.BROKER_UNREACHABLE.value, "the reason")
            assert device.versions("tiny") == ["1.0.0"]


@pytest.mark.parametrize("how", ["garbage", "errors", "endless", "slow"])
def test_a_repository_that(running: Fleet, board: str, how: str) -> None:
    """It delays an update; the next good answer brings it."""
    with bad_repository(how, running.url) as repository:
        settings = f'repository = "{repository.url}"'
        name = f"{board}-{how}"
        with serving(running, name, settings=settings) as device:
            repository.bad = True
            running.rollout("1.1.0", name=name)
            if how != "slow":
                told = wait_for(
                    lambda: events_of(running, name, "repository_refused"), "the reason"
                )
                assert told[0]["facts"]["reason"].startswith("repository_")
            else:
                wait_for(lambda: repository.asked, "it to be asked")
            assert device.versions("tiny") == ["1.0.0"]
            assert running.state(name)["state"] == "fetching"
            repository.bad = False
            wait_for(lambda: device.versions("tiny") == ["1.1.0"], "the version")


def configure(device: EdgeDaemon, *, reserve_bytes: int) -> None:
    text = device.config.read_text()
    text = text.replace("[update]", f"[update]\nreserve_bytes = {reserve_bytes}")
    device.config.write_text(text)


@contextmanager
def small_disk(running: Fleet, name: str, *, size: str) -> Iterator[tuple[EdgeDaemon, Path]]:
    """An enrolled device whose state folder is a disk of its own, and a way to look into it."""
    device = running.device(name)
    device.warnings = WARNINGS
    configure(device, reserve_bytes=1 << 20)
    kept = device.state.with_name("kept")
    shutil.copytree(device.state, kept, symlinks=True)
    script = 'mount -t tmpfs -o "size=$1" tmpfs "$2"; cp -a "$3/." "$2"'
    device.prefix = in_namespace(script, size, device.state, kept)
    device.start()
    assert device.process is not None
    try:
        wait_for(lambda: running.shown(name), "the device")
        yield device, Path(f"/proc/{device.process.pid}/root") / device.state.relative_to("/")
    finally:
        device.stop()
        print(device.log[-3000:])  # noqa: T201
        assert "Traceback" not in device.log


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        try:
            while True:
                file.write(bytes(16))
        except OSError:
            return


def expire(running: Fleet, device: EdgeDaemon) -> None:
    """Give the device a certificate of its fleet, for its own key, that ended yesterday."""
    issuer = Authority.read(running.folder.ca_key, running.folder.ca_certificate)
    path = (device.state / "identity").resolve() / "device.crt"
    old = certificates.read(path)
    key = old.public_key()
    ended = issuer.issue_device(
        authority.subject_of(old),
        key,  # type: ignore[arg-type]
        days=1,
        now_ms=round((time.time() - 3 * 86_400) * 1000),
    )
    authority.write_certificate(path, ended)


class BadRepository:
    """Stands before the fleet's repository, and answers badly while it is told to."""

    def __init__(self, how: str, upstream: str) -> None:
        self.bad = False
        self.asked = 0
        self._upstream = upstream
        answer: Callable[[http.server.BaseHTTPRequestHandler], None] = {
            "garbage": _garbage,
            "errors": lambda request: request.send_error(500),
            "endless": _endless,
            "slow": self._drip,
        }[how]
        repository = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                repository.asked += repository.bad
                if repository.bad:
                    answer(self)
                else:
                    repository.forward(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/repository/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def forward(self, request: http.server.BaseHTTPRequestHandler) -> None:
        host = self._upstream.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=10)
        try:
            wanted = {"Range": request.headers["Range"]} if "Range" in request.headers else {}
            connection.request("GET", request.path, headers=wanted)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        request.send_response(answer.status)
        for name in ("Content-Range", "ETag", "Content-Type"):
            if (value := answer.getheader(name)) is not None:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _drip(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """A byte now and then, for as long as somebody listens and it is bad."""
        request.send_response(200)
        request.send_header("Content-Length", "100000")
        request.end_headers()
        try:
            while self.bad:
                request.wfile.write(b"{")
                time.sleep(0.5)
        except OSError:
            return

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def bad_repository(how: str, upstream: str) -> Iterator[BadRepository]:
    made = BadRepository(how, upstream)
    try:
        yield made
    finally:
        made.close()


def _garbage(request: http.server.BaseHTTPRequestHandler) -> None:
    body = os.urandom(2000)
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def _endless(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        for _ in range(4096):
            request.wfile.write(b" " * 65_536)
    except OSError:
        return
