"""Config: what a board's owner tells the daemon, in one TOML file, checked once at start-up.

An unknown or wrong field stops the daemon before it does anything, with the file and the field in
the message. Everything but `[device]` has a default, so a board without a fleet needs four lines.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from edgekit.errors import ConfigError, UsageError
from edgekit.link import Broker
from edgekit.manifest import ModelName
from edgekit.messages import Id
from edgekit.profile import Name
from edgekit.structs import Strict
from edgekit.topics import ROUNDS
from edgekit_runtime.canary.settings import CanarySection
from edgekit_runtime.control.settings import CommandsSection
from edgekit_runtime.serving import address
from edgekit_runtime.serving.plan import Workers
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.serving.tls import Tls

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PATH = Path("/etc/edgekit/device.toml")
MAX_CONFIG_BYTES = 1 << 20

WINDOW = r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]\Z"

Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86_400)]
Bytes = Annotated[int, msgspec.Meta(gt=0, le=1 << 40)]
Megabytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class DeviceSection(Strict, frozen=True, kw_only=True):
    """`[device]`: who this board is.

    Attributes:
        site: the site it stands at; the first part of its MQTT topics.
        id: its name within the site; also the client id that the broker knows.
        profile: name of the device profile; a bundle for another profile is refused.
    """

    site: Id
    id: Id
    profile: Name

    def __post_init__(self) -> None:
        if self.id == ROUNDS:
            raise ValueError(f"no device may be called {ROUNDS}")


class StateSection(Strict, frozen=True, kw_only=True):
    """`[state]`: where the daemon keeps what must survive it.

    Attributes:
        folder: slots, downloads, outbox and what was wanted last; made where it is missing.
    """

    folder: Path = Path("/var/lib/edgekit")


def _check_address(text: str) -> None:
    try:
        address.parse(text)
    except UsageError as e:
        raise ValueError(e.with_hint) from e


class ServeSection(Strict, frozen=True, kw_only=True):
    """`[serve]`: where local programs find the models, and what serving may take.

    Attributes:
        listen: HOST:PORT; "" listens on no port. An address that other machines can reach needs
            `tokens` and `tls`, or `tls` with a `client_ca`.
        unix: path of a Unix socket; without it there is none.
        grpc: HOST:PORT for gRPC; without it there is none. It takes the extra `grpc`.
        bell: path of the socket through which clients in shared memory ring; without it there is
            none.
        tokens: file with a `NAME TOKEN [admin]` on each line, mode 0600.
        tls: certificate and key for every TCP address.
        workers: where engines run; "auto" chooses by what a model's calls cost.
        queue_limit: requests that may wait for one model; more are answered 429.
        memory_mb: for all models together; 0 sets no limit.
        worker_mb: for one worker process; one that holds more is ended and begun anew; 0 sets no
            limit.
        run_limit_s: a run that takes longer is given up, and its worker with it.
        cache_mb: for answers to requests that come again; 0 keeps none.
        ladder: whether a faster variant may answer where the most accurate one would come too late.
        cascade: confidence below which a small variant's answer is asked again of the most accurate
            one; without it only requests decide.
        connections: open at once over all HTTP listeners; idle ones make room for new ones.
    """

    listen: str = "127.0.0.1:8500"
    unix: Path | None = None
    grpc: str | None = None
    bell: Path | None = None
    tokens: Path | None = None
    tls: Tls | None = None
    workers: Workers = "auto"
    queue_limit: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 64
    memory_mb: Megabytes = 0
    worker_mb: Megabytes = 0
    run_limit_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    cache_mb: Megabytes = 0
    ladder: bool = True
    cascade: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1024

    @property
    def settings(self) -> Settings:
        """What of this is for the models."""
        return Settings(
            workers=self.workers,
            queue_limit=self.queue_limit,
            memory_bytes=self.memory_mb << 20,
            worker_bytes=self.worker_mb << 20,
            run_limit_s=self.run_limit_s,
            cache_bytes=self.cache_mb << 20,
            ladder=self.ladder,
            cascade=self.cascade,
        )

    def __post_init__(self) -> None:
        if not self.listen and self.unix is None:
            raise ValueError("listen and unix are both empty: nothing could be served")
        for text in filter(None, (self.listen, self.grpc)):
            _check_address(text)


class TrustSection(Strict, frozen=True, kw_only=True):
    """`[trust]`: whose bundles may run here.

    Attributes:
        keys: public keys (PEM); a bundle must be signed by one of them, and no other key counts.
    """

    keys: tuple[Path, ...] = ()


class FleetSection(Strict, frozen=True, kw_only=True):
    """`[fleet]`: the coordinator's side; without this section the daemon only serves its slots.

    A device belongs to a fleet either by an identity, and then broker and addresses come from its
    enrolment where they are not set here, or `insecure`: nothing of what it is told is signed.

    Attributes:
        identity: folder that `edgekit device enroll` makes; where nothing is said, and not
            `insecure`, it is `identity` in the state folder.
        insecure: for demonstrations on one machine: no certificate, unsigned wishes.
        broker: `mqtts://HOST:PORT`; `mqtt://` where insecure.
        repository: base of bundle addresses; an `http` or `https` URL that ends in `/`.
        mirrors: further bases that hold the same, tried in this order after the repository.
        telemetry_interval_s: seconds between two telemetry messages.
        keepalive_s: longest silence on the link; a device is missed after half as long again.
        outbox_rows: most messages that wait for the coordinator's acknowledgement.
        outbox_bytes: most bytes of their payloads.
        outbox_age_s: how long a message waits before it is given up.
    """

    identity: Path | None = None
    insecure: bool = False
    broker: str | None = None
    repository: str | None = None
    mirrors: tuple[str, ...] = ()
    telemetry_interval_s: Seconds = 60.0
    keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 60
    outbox_rows: Annotated[int, msgspec.Meta(ge=10, le=10_000_000)] = 100_000
    outbox_bytes: Annotated[int, msgspec.Meta(ge=65_536, le=1 << 40)] = 64 << 20
    outbox_age_s: Annotated[float, msgspec.Meta(ge=60, le=366 * 86_400)] = 30 * 86_400.0

    def __post_init__(self) -> None:
        if self.identity is not None and self.insecure:
            raise ValueError("identity and insecure exclude each other")
        if self.insecure and (self.broker is None or self.repository is None):
            raise ValueError("broker and repository are needed where there is no identity")
        if self.broker is not None:
            try:
                tls = Broker.parse(self.broker).tls
            except ConfigError as e:
                raise ValueError(e.message) from e
            if tls == self.insecure:
                raise ValueError(f"broker {self.broker!r}: mqtts:// goes with an identity")
        for url in filter(None, (self.repository, *self.mirrors)):
            _check_base(url)


def _check_base(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"repository {url!r} is not an http or https URL")
    if not parts.path.endswith("/"):
        raise ValueError(f"repository {url!r} must end in /")


class UpdateSection(Strict, frozen=True, kw_only=True):
    """`[update]`: how patient the daemon is with a new bundle; seconds in each state.

    Attributes:
        fetch_limit_s: for the whole download, waits between attempts included.
        verify_limit_s: for digests and signature, and for writing the free slot.
        probe_limit_s: for opening the model and running its golden inputs.
        confirm_after_s: how long a new version must serve before it counts as good.
        max_engine_failures: failures of the engine within that time that are still accepted; one
            more and the daemon goes back to the previous version.
        reserve_bytes: disk space that a download must leave free.
        bandwidth_bytes_s: most bytes a second that a download takes; without it there is no limit.
        window: HH:MM-HH:MM in local time: downloads go on within it alone; it may cross midnight.
    """

    fetch_limit_s: Seconds = 86_400.0
    verify_limit_s: Seconds = 600.0
    probe_limit_s: Seconds = 300.0
    confirm_after_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 30.0
    max_engine_failures: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 3
    reserve_bytes: Bytes = 16 << 20
    bandwidth_bytes_s: Annotated[int, msgspec.Meta(ge=1024, le=1 << 40)] | None = None
    window: str | None = None

    def __post_init__(self) -> None:
        if self.window is not None and re.match(WINDOW, self.window) is None:
            raise ValueError(f"window {self.window!r} is not HH:MM-HH:MM, as in 22:00-05:30")


class TrainingSection(Strict, frozen=True, kw_only=True):
    """`[training]`: what this board gives to federated rounds; its data never leaves it.

    Attributes:
        data: `.npz` with one array per model input, named as the input, and `labels`; axis 0
            counts samples.
        models: models that may be trained with it.
        max_seconds: longest that one round may compute here.
        niceness: added to the training thread's scheduling priority; 19 yields to all else.
    """

    data: Path
    models: Annotated[tuple[ModelName, ...], msgspec.Meta(min_length=1)]
    max_seconds: Seconds = 600.0
    niceness: Annotated[int, msgspec.Meta(ge=0, le=19)] = 10


class Config(Strict, frozen=True, kw_only=True):
    """The whole file; each field is a section."""

    device: DeviceSection
    state: StateSection = StateSection()
    serve: ServeSection = ServeSection()
    trust: TrustSection = TrustSection()
    update: UpdateSection = UpdateSection()
    canary: CanarySection = CanarySection()
    commands: CommandsSection = CommandsSection()
    fleet: FleetSection | None = None
    training: TrainingSection | None = None

    def __post_init__(self) -> None:
        if self.training is not None and self.fleet is None:
            raise ValueError("[training] needs [fleet]: rounds come over the fleet's broker")


_SECTIONS = ", ".join(Config.__struct_fields__)
_HINT = "docs/device.md gives each field and what it may be"


def read(path: Path) -> Config:
    """The configuration in a TOML file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has a wrong or unknown field.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as e:
        raise ConfigError(
            f"configuration {path} cannot be read: {e.strerror}", hint="--config FILE names another"
        ) from e
    return decode(raw, what=str(path))


def decode(raw: bytes, *, what: str) -> Config:
    """The configuration in TOML text; `what` names it in messages."""
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{what} has more than {MAX_CONFIG_BYTES} bytes")
    try:
        tree = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{what} is not TOML: {e}") from e
    try:
        found = msgspec.convert(tree, Config, dec_hook=_path)
    except msgspec.ValidationError as e:
        is_about_sections = "$" not in str(e)
        hint = f"sections are {_SECTIONS}" if is_about_sections else _HINT
        raise ConfigError(f"{what}: {e}", hint=hint) from e
    fleet = found.fleet
    if fleet is None or fleet.insecure or fleet.identity is not None:
        return found
    own = msgspec.structs.replace(fleet, identity=found.state.folder / "identity")
    return msgspec.structs.replace(found, fleet=own)


def _path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("expected the path of a file or folder")
