"""Coordinator: wiring, start-up and shutdown; no rules. What it was doing is in its store.

Threads: the link's own (MQTT in), `ingest` (commits and acknowledges), `rounds` (aggregation and
builds) and `steward`, which sends desired states and carries rollouts on whenever something
changed. HTTP runs on the main thread's loop. A thread that ends by an error nobody foresaw ends
the process: a half-working coordinator would look healthy.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgekit import enrolment, link, topics
from edgekit.clock import Clock
from edgekit.control import RESULT_FILTER
from edgekit.errors import ConfigError, LinkError, MessageError, StorageError
from edgekit.fleet import broker, control_rows, ingest, telemetry
from edgekit.fleet.address import Address, Claim
from edgekit.fleet.control import Control
from edgekit.fleet.desired import Sender
from edgekit.fleet.files import Files
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.ingest import Ingest
from edgekit.fleet.registrar import Registrar
from edgekit.fleet.release import Builder
from edgekit.fleet.repository import Repository
from edgekit.fleet.rollouts import Rollouts
from edgekit.fleet.rounds import Rounds
from edgekit.fleet.starting import broker_command
from edgekit.fleet.store import Store
from edgekit.signing import PublicKey, SigningKey

log = logging.getLogger(__name__)

_STEP_S = 1.0
_LINK_ROOM_S = 0.02
_PRUNE_EVERY_S = 3600.0
_CONNECT_TIMEOUT_S = 5.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a coordinator runs.

    Attributes:
        broker: URL of the broker.
        fleet: the fleet's folder; `None` takes everybody and everything (demo mode).
        state: folder of the store, the repository and the files of rounds.
        sites: the sites whose devices it keeps.
        trusted: keys whose bundles it takes.
        key: file of the key that signs the candidates of rounds; `None` refuses rounds.
        keep_messages_s: how long acknowledged messages stay in the store.
        keep_figures_s: how long the sums by minute stay.
    """

    broker: str
    state: Path
    sites: tuple[str, ...]
    trusted: Sequence[PublicKey]
    key: Path | None
    fleet: FleetFolder | None = None
    keep_messages_s: float = 7 * 86400.0
    keep_figures_s: float = 30 * 86400.0


class Coordinator:
    """A running coordinator, without its HTTP side.

    Raises:
        LinkError: the broker cannot be reached, or another coordinator uses the folder.
        StorageError: the state folder cannot be used.
    """

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._broker = link.Broker.parse(settings.broker)
        require_broker(self._broker, fleet=settings.fleet)
        self._claims = [Claim(settings.state, what="coordinator")]
        if settings.fleet is not None:
            # A second one would take the first one's session and sign wishes of its own.
            self._claims.append(
                Claim(
                    settings.fleet.coordinator,
                    what="coordinator",
                    instead="use that one: a fleet has one coordinator",
                )
            )
        self.registrar = (
            Registrar(settings.fleet, clock=clock) if settings.fleet is not None else None
        )
        self.store = Store.in_folder(settings.state)
        self.repository = _repository(settings, store=self.store, clock=clock)
        self.files = Files(settings.state / "files")
        self.rollouts = Rollouts(store=self.store, clock=clock, release_key=_release_key(settings))
        self.ingest = Ingest(
            store=self.store, clock=clock, publish=self._publish, on_change=self.wake
        )
        control_key = SigningKey.read(settings.fleet.control_key) if settings.fleet else None
        self.rounds = Rounds(
            store=self.store,
            clock=clock,
            repository=self.repository,
            files=self.files,
            rollouts=self.rollouts,
            builder=Builder(key=_round_key(settings), state=settings.state / "rounds"),
            publish=self._publish_retained,
            key=control_key,
            keys=self.registrar.keys if self.registrar is not None else None,
        )
        self._sender = Sender(
            store=self.store, clock=clock, publish=self._publish_retained, key=control_key
        )
        self.control = Control(
            store=self.store,
            clock=clock,
            publish=self._publish,
            key=control_key,
            on_change=self.wake,
        )
        self._link = link.MqttLink(
            self._broker,
            client_id=_client_id(settings),
            filters=_filters(settings.sites),
            at_most_once=[topics.every_device(site, topics.STATUS) for site in settings.sites],
            on_message=self._receive,
            on_connect=self._connected,
            tls=settings.fleet.client_tls if settings.fleet is not None else None,
        )
        self._wake = threading.Event()
        self._first_up = threading.Event()
        self._reconnected = threading.Event()
        self._closing = threading.Event()
        self._steward = threading.Thread(target=self._keep, name="steward", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether the link to the broker is up."""
        return self._link.connected

    def start(self, *, on_failure: Callable[[threading.ExceptHookArgs], None]) -> None:
        """Start every thread, and return when devices can be heard.

        Args:
            on_failure: hears of a thread that ended by an unforeseen error.

        Raises:
            LinkError: the broker answered before, and refuses the connection now.
        """
        threading.excepthook = on_failure
        self.ingest.start()
        self.rounds.start()
        self._steward.start()
        self._link.start()
        deadline_s = self._clock.monotonic() + _CONNECT_TIMEOUT_S
        while not self._first_up.wait(_LINK_ROOM_S):
            if self._clock.monotonic() > deadline_s:
                raise self._not_let_in()

    def close(self) -> None:
        """End every thread; what was received is stored."""
        self._closing.set()
        self._wake.set()
        self.rounds.close()
        self.ingest.close()
        self._steward.join()
        self._link.close()
        self.store.close()
        for claim in self._claims:
            claim.release()

    def wake(self) -> None:
        """Something changed: look after rollouts and desired states now."""
        self._wake.set()

    def _not_let_in(self) -> LinkError:
        """Why there is no link: nobody is there, or the broker does not want us."""
        address = Address(self._broker.host, self._broker.port)
        if not broker.listens(address, timeout_s=_CONNECT_TIMEOUT_S):
            return _nobody(address, fleet=self.settings.fleet)
        reason = self._link.refused or "it does not answer"
        return LinkError(
            f"the broker at {self.settings.broker} does not let the coordinator in: {reason}",
            hint="--broker names another",
        )

    def _receive(self, topic: str, payload: bytes) -> None:
        parsed = topics.parse(topic)
        if parsed is not None and self.registrar and not self.registrar.has(parsed):
            raise MessageError("the device is not enrolled, or was revoked")
        if isinstance(parsed, topics.UpdateTopic):
            self.rounds.receive(parsed, payload)
        elif parsed is None or not self.control.receive(parsed, payload):
            self.ingest.receive(topic, payload)

    def _connected(self) -> None:
        self._first_up.set()
        self._reconnected.set()
        self.rounds.reconnected()
        self._wake.set()

    def _keep(self) -> None:
        pruned_s = self._clock.monotonic()
        while not self._closing.is_set():
            try:
                if self.registrar is not None:
                    self.registrar.refresh(self.store)
                all_sent = self._step()
                if self._clock.monotonic() - pruned_s > _PRUNE_EVERY_S:
                    pruned_s = self._clock.monotonic()
                    self._prune()
                    if self.registrar is not None:
                        self.registrar.renew_services()
            except StorageError as e:
                log.error("rollouts wait: %s", e)
                all_sent = True
            self._wake.wait(_STEP_S if all_sent or not self.connected else _LINK_ROOM_S)
            self._wake.clear()

    def _step(self) -> bool:
        """Carry rollouts on and send what they desire; whether all of it was sent."""
        if self._reconnected.is_set():
            self._sender.forget()
            self.control.forget()
            self._reconnected.clear()
        self.repository.look_after()
        self.rollouts.step()
        are_asked = self.control.step()
        return self._sender.flush() and are_asked

    def _prune(self) -> None:
        now_ms = self._clock.now_ms()
        with self.store.write() as connection:
            kept_ms = round(self.settings.keep_messages_s * 1000)
            messages = ingest.prune(connection, before_ms=now_ms - kept_ms)
            kept_ms = round(self.settings.keep_figures_s * 1000)
            minutes = telemetry.prune(connection, before_ms=now_ms - kept_ms)
            control_rows.prune(connection, before_ms=now_ms - kept_ms)
        log.info("old rows removed", extra={"messages": messages, "minutes": minutes})

    def _publish(self, topic: str, payload: bytes) -> bool:
        return self._link.publish(topic, payload)

    def _publish_retained(self, topic: str, payload: bytes) -> bool:
        return self._link.publish(topic, payload, retain=True)


def require_broker(address: link.Broker, *, fleet: FleetFolder | None = None) -> None:
    """Refuse to start without a broker; one that goes away later is waited for.

    Raises:
        LinkError: none answers. One over TLS is not asked here: `Coordinator.start` is.
        ConfigError: a fleet whose broker is not over TLS, or TLS without a fleet.
    """
    if address.tls != (fleet is not None):
        raise ConfigError(
            "mqtts:// and a fleet's folder go together: "
            + ("--fleet is missing" if address.tls else "the broker is mqtt://"),
            hint="edgekit coordinator --fleet DIR",
        )
    if address.tls:
        return
    at = Address(address.host, address.port)
    if not broker.answers_mqtt(at, timeout_s=_CONNECT_TIMEOUT_S):
        raise _nobody(at, fleet=None)


def _nobody(address: Address, *, fleet: FleetFolder | None) -> LinkError:
    starts = broker_command(fleet.path) if fleet is not None else "edgekit broker"
    return LinkError(
        f"no MQTT broker answers at {address}",
        hint=f"{starts} starts one; --broker names another",
    )


def _repository(settings: Settings, *, store: Store, clock: Clock) -> Repository:
    work = settings.state / "repository"
    if settings.fleet is None:
        return Repository(store=store, folder=work, trusted=settings.trusted, clock=clock)
    from edgekit.fleet.tuf.served import FleetRepository  # an insecure fleet signs nothing

    return FleetRepository(store=store, fleet=settings.fleet, work=work, clock=clock)


def _round_key(settings: Settings) -> Path | None:
    """Whose the candidates of rounds are: in a fleet the coordinator's own key signs them."""
    return settings.fleet.control_key if settings.fleet is not None else settings.key


def _release_key(settings: Settings) -> Callable[[], str] | None:
    """Reads whose releases a device trusts that enrols now: the key may be exchanged meanwhile."""
    fleet = settings.fleet
    return None if fleet is None else lambda: PublicKey.read(fleet.trust_release).id


def _client_id(settings: Settings) -> str:
    # Coordinators of other sites may use the same broker.
    name = "_".join(["edgekit-coordinator", *settings.sites])
    if settings.fleet is None:
        return name
    return enrolment.client_id(name, SigningKey.read(settings.fleet.client_key))


def _filters(sites: Sequence[str]) -> list[str]:
    heard = (*(leaf for leaf in ingest.LEAVES if leaf != topics.STATUS), RESULT_FILTER)
    leaves = [topics.every_device(site, leaf) for site in sites for leaf in heard]
    return leaves + [topics.every_update(site) for site in sites]
