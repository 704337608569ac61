"""A repository that lies: real signed metadata behind a static server whose answers can be bent.

`SignedFleet` makes and changes the repository with the project's own tools, or with the keys and
the metadata library directly where a lie needs a signature. `Server` serves its folder; each name
can be given another answer, and what was asked is counted.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from edgekit import storage
from edgekit.clock import Clock, SystemClock
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.tuf import make, roles, signers
from edgekit.fleet.tuf.editor import Editor, locked
from edgekit.fleet.tuf.publish import Added, publish
from edgekit.signing import SigningKey
from tests import bundles

DAY_S = 86400.0
Handler = http.server.SimpleHTTPRequestHandler
Bent = Callable[[Handler], None]


class SignedFleet:
    """A fleet's folder with its keys and its repository.

    Args:
        folder: where it is; `make` makes it, a copy of it is opened as it is.
        clock: by which metadata is signed.
    """

    def __init__(self, folder: Path, *, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.work = folder
        self.fleet = FleetFolder(folder / "fleet")

    @classmethod
    def make(cls, folder: Path, *, clock: Clock | None = None) -> SignedFleet:
        """Make keys and an empty repository in a new folder."""
        made = cls(folder, clock=clock)
        fleet = made.fleet
        for path in (
            *fleet.root_keys,
            fleet.targets_key,
            fleet.release_key,
            fleet.control_key,
            fleet.online_key,
        ):
            storage.write(path, SigningKey.generate().pem(), mode=0o600)
        for key in (fleet.release_key, fleet.control_key):
            storage.write(key.with_suffix(".pub"), SigningKey.read(key).public.pem)
        make(fleet, clock=made.clock)
        return made

    @property
    def release_key(self) -> SigningKey:
        return SigningKey.read(self.fleet.release_key)

    def bundle(self, version: str, *, seed: int = 0, key: SigningKey | None = None) -> Path:
        """Write a bundle of `tiny`, signed by the release key."""
        return bundles.write(self.work, version=version, seed=seed, key=key or self.release_key)

    def publish(self, version: str, *, seed: int = 0) -> Added:
        """Write a bundle and publish it, without deltas."""
        path = self.bundle(version, seed=seed)
        return publish(self.fleet, path, clock=self.clock, deltas=False)

    def copy(self, name: str) -> Path:
        """The repository as it is now, at another place."""
        return Path(shutil.copytree(self.fleet.repository, self.work / name))

    @contextmanager
    def editing(self, *, online: Sequence[CryptoSigner] = ()) -> Iterator[Editor]:
        """Change anything, with the keys of the fleet, and let it count."""
        with locked(self.fleet):
            editor = Editor(self.fleet, clock=self.clock)
            yield editor
            editor.commit(list(online) or [self.signer(self.fleet.online_key)], renew=True)

    def signer(self, key: Path) -> CryptoSigner:
        return signers.of(SigningKey.read(key))

    def at(self, clock: Clock) -> None:
        """From now on sign by another clock."""
        self.clock = clock

    def sign_timestamp(self, *, by: CryptoSigner) -> None:
        """Sign the timestamp with any key, as the next version."""
        path = self.fleet.metadata / f"{roles.TIMESTAMP}.json"
        metadata = Metadata[Timestamp].from_file(str(path))
        metadata.signed.version += 1
        metadata.sign(by)
        path.write_bytes(metadata.to_bytes())

    def drop_from_snapshot(self, role: str) -> None:
        """Sign a snapshot that does not list a role any more."""
        online = self.signer(self.fleet.online_key)
        timestamp_file = self.fleet.metadata / f"{roles.TIMESTAMP}.json"
        timestamp = Metadata[Timestamp].from_file(str(timestamp_file))
        version = timestamp.signed.snapshot_meta.version
        snapshot = Metadata[Snapshot].from_file(
            str(self.fleet.metadata / f"{version}.snapshot.json")
        )
        del snapshot.signed.meta[f"{role}.json"]
        snapshot.signed.version = version + 1
        snapshot.sign(online)
        raw = snapshot.to_bytes()
        (self.fleet.metadata / f"{version + 1}.snapshot.json").write_bytes(raw)
        timestamp.signed.snapshot_meta = MetaFile.from_data(version + 1, raw, ["sha256"])
        timestamp.signed.version += 1
        timestamp.sign(online)
        timestamp_file.write_bytes(timestamp.to_bytes())

    def bring(self, editor: Editor, role: str, targets: Targets, *, by: Path) -> None:
        """Sign for a role that no fleet has."""
        targets.version = 10_000 + len(editor.snapshot.signed.meta)
        targets.expires = editor.now + roles.valid_for(role)
        metadata = Metadata(targets)
        metadata.sign(self.signer(by))
        name = f"{targets.version}.{role}.json"
        (self.fleet.metadata / name).write_bytes(metadata.to_bytes())
        editor.snapshot.signed.meta[f"{role}.json"] = MetaFile(targets.version)

    def claim(self, editor: Editor, role: str, path: str, *, like: str, by: Path) -> None:
        """Have a role sign for a path of another role, with what is signed at `like`."""
        for other in editor.targets_roles():
            found = editor.read(other).signed.targets.get(like)
            if found is not None:
                targets: Targets = editor.read(role).signed
                targets.targets[path] = found
                editor.change(role, self.signer(by))
                return
        raise AssertionError(f"nothing is signed for {like}")


class Server:
    """A static HTTP server over a folder; ends with its block.

    Args:
        folder: what it serves.
        tls: certificate and key, for https.

    Attributes:
        bent: by name below the folder, what answers instead; `*` stands for every name.
        asked: names in the order they were asked for.
        sent_bytes: bodies of the files that were served.
        date: time that its answers carry, in seconds since 1970; the true one by default.
    """

    def __init__(self, folder: Path, *, tls: tuple[Path, Path] | None = None) -> None:
        self.folder = folder
        self._scheme = "http" if tls is None else "https"
        self.bent: dict[str, Bent] = {}
        self.asked: list[str] = []
        self.sent_bytes = 0
        self.date: float | None = None
        server = self

        class Answering(Handler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *args: object, **options: object) -> None:
                super().__init__(*args, directory=str(server.folder), **options)  # type: ignore[arg-type]

            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                server.asked.append(name)
                bent = server.bent.get(name) or server.bent.get("*")
                if bent is not None:
                    bent(self)
                    return
                path = server.folder / name
                server.sent_bytes += path.stat().st_size if path.is_file() else 0
                super().do_GET()

            def handle(self) -> None:
                # A client that has seen enough hangs up, at any moment.
                with suppress(ConnectionError):
                    super().handle()

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(timestamp or server.date)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._server.daemon_threads = True
        if tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(
            target=functools.partial(self._server.serve_forever, 0.02), daemon=True
        )
        self.closing = threading.Event()
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def says(body: bytes, *, status: int = 200, **headers: str) -> Bent:
    """Answers with these bytes."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def endless(handler: Handler) -> None:
    """Sends for as long as anybody reads."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b"{" * 65536)


def drips(handler: Handler) -> None:
    """Sends a head, and then a byte now and then, for longer than any test waits."""
    handler.send_response(200)
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    for _ in range(400):
        handler.wfile.write(b"{")
        time.sleep(0.05)


def drips_its_head(handler: Handler) -> None:
    """Sends a head that does not end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(400):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def cut_short(handler: Handler) -> None:
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    handler.wfile.write(b'{"signed":')
    handler.close_connection = True


def role_of(path: str) -> str:
    """The bin of a target path, by the rule of TAP 15 and not by ours."""
    number = hashlib.sha256(path.encode()).digest()[0] >> (8 - roles.BIN_BITS)
    return f"{roles.RELEASES}-{number:02x}"
