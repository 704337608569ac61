"""Uplink: the device's side of the MQTT tree. Messages in go to whom they concern; out go status,
reported state, telemetry and events.

Promise: nothing that arrives here ends the daemon; what is not valid is logged and dropped. Status
and reported state are retained, so that it does not matter who listened when they were said; a
broker may lose one all the same, so the reported state is said again beside the telemetry that
tells of it, and when a wish comes again. An enrolled device takes wishes and rounds only in an
envelope that its fleet signed, and a wish only in its own name.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Protocol

from edgekit import __version__, envelope, messages, topics
from edgekit.clock import Clock
from edgekit.control import COMMAND_FILTER, command_id
from edgekit.errors import EdgekitError, MessageError
from edgekit.link import Broker, MqttLink, Will
from edgekit.messages import Ack, Desired, Message, ModelState, Reported, RoundOpen, Status
from edgekit_runtime import sensors
from edgekit_runtime.config import Config, FleetSection
from edgekit_runtime.outbox import Kind, Outbox
from edgekit_runtime.sender import Sender
from edgekit_runtime.telemetry import Drifts, Figures, Reporter
from edgekit_runtime.trainer import Trainer

if TYPE_CHECKING:
    from edgekit_runtime.identity import Identity

log = logging.getLogger(__name__)

OUTBOX = "outbox.db"


class Commands(Protocol):
    """What carries out commands: `control.Control`."""

    def received(self, number: str, payload: bytes) -> None: ...

    def connected(self) -> None: ...


class Uplink:
    """The connection to a fleet.

    Args:
        config: of this device.
        fleet: its `[fleet]` section.
        identity: of an enrolled device; `None` where the section is insecure.
        boot: of this start of the daemon.
        figures: what the models did since it was last called.
        drifts: what is known of each model's drift.
        clock: for time stamps and time limits.
        rng: spreads the repetitions of many devices.
    """

    def __init__(
        self,
        config: Config,
        fleet: FleetSection,
        *,
        identity: Identity | None = None,
        boot: str,
        figures: Figures,
        drifts: Drifts = tuple,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._device = config.device
        self._boot = boot
        self._clock = clock
        self._lock = threading.Lock()
        self._report: Callable[[], Reported] | None = None
        self._want: Callable[[Desired], None] | None = None
        self._trainer: Trainer | None = None
        self._control: Commands | None = None
        self._identity = identity
        self._name = f"{self._device.site}/{self._device.id}"
        self._closing = False
        self._present = False
        self._outbox = Outbox(
            config.state.folder / OUTBOX,
            boot=boot,
            max_rows=fleet.outbox_rows,
            max_bytes=fleet.outbox_bytes,
            max_age_s=fleet.outbox_age_s,
            clock=clock,
        )
        self._sender = Sender(self._outbox, self._publish_counted, clock=clock, rng=rng)
        self._reporter = Reporter(
            self._outbox,
            self._sender,
            boot=boot,
            interval_s=fleet.telemetry_interval_s,
            figures=figures,
            resources=lambda: sensors.read(config.state.folder),
            drifts=drifts,
            slots=self._states,
            on_slots=self.changed,
            clock=clock,
        )
        self.events = self._reporter.event
        heard = (topics.DESIRED, topics.ACK, topics.STATUS, COMMAND_FILTER)
        filters = [self._topic(leaf) for leaf in heard]
        if config.training is not None:
            filters.append(topics.every_round_open(self._device.site))
        self.link = MqttLink(
            Broker.parse(_broker(fleet, identity)),
            # With a sign that names cannot have: `a-b/c` and `a/b-c` are two devices.
            client_id=identity.client_id if identity else f"{self._device.site}_{self._device.id}",
            filters=filters,
            on_message=self._received,
            on_connect=self._connected,
            will=Will(self._topic(topics.STATUS), self._status(online=False)),
            tls=identity.tls if identity else None,
            keepalive_s=fleet.keepalive_s,
            # Only the parameters of a round are longer than a message.
            max_payload_bytes=(
                messages.MAX_TENSOR_FRAME_BYTES if config.training else messages.MAX_PAYLOAD_BYTES
            ),
        )

    def start(
        self,
        *,
        report: Callable[[], Reported],
        want: Callable[[Desired], None],
        trainer: Trainer | None,
        control: Commands | None = None,
    ) -> None:
        """Connect, and stay connected.

        Args:
            report: what the device has now.
            want: takes a desired state.
            trainer: takes part in rounds, where this device does.
            control: carries out commands.
        """
        self._report, self._want, self._trainer = report, want, trainer
        self._control = control
        self._reporter.start()
        self.link.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread of the outbox still runs."""
        return self._reporter.is_alive

    def set_interval(self, seconds: float) -> None:
        """Send telemetry that often from now on, from any thread."""
        self._reporter.set_interval(seconds)

    def answer(self, leaf: str, payload: bytes) -> bool:
        """Publish the result of a command; `False` while there is no link."""
        return self.link.publish(self._topic(leaf), payload)

    def _states(self) -> Mapping[str, ModelState]:
        """What telemetry says of the slots; nothing before the start."""
        return self._report().models if self._report is not None else {}

    def changed(self) -> None:
        """The reported state changed: tell it, if anybody can hear it."""
        # One at a time, so that the last one that is retained is the newest.
        with self._lock:
            if self._report is not None and self.link.connected:
                payload = messages.encode(self._report())
                self.link.publish(self._topic(topics.REPORTED), payload, retain=True)

    def close(self) -> None:
        """Say what is left to say, say goodbye, disconnect."""
        self._reporter.close()
        self._closing = True
        self.link.publish(self._topic(topics.STATUS), self._status(online=False), retain=True)
        self.link.close()
        self._outbox.close()

    def _connected(self) -> None:
        self._present = False
        self._say_online()
        self.changed()
        self._sender.connected()
        self._reporter.wake()
        if self._control is not None:
            self._control.connected()

    def _heard(self, said: Status) -> None:
        """Contradict the last will of a connection that is over, where it comes after our status.

        What comes before our own status has come back is what the broker had kept, and past.
        """
        if said.online:
            self._present = self._present or said.boot == self._boot
        elif self._present and not self._closing:
            self._say_online()

    def _say_online(self) -> None:
        self.link.publish(self._topic(topics.STATUS), self._status(online=True), retain=True)

    def _received(self, topic: str, payload: bytes) -> None:
        try:
            self._route(topic, payload)
        except EdgekitError as e:
            log.warning("message dropped", extra={"topic": topic, "error": str(e)})
        except Exception:  # the daemon goes on; the log has the traceback
            log.exception("message failed", extra={"topic": topic})

    def _route(self, topic: str, payload: bytes) -> None:
        if len(payload) > messages.MAX_PAYLOAD_BYTES and not topic.endswith(
            f"/{topics.PARAMETERS}"
        ):
            # Before anybody keeps it: the link takes more, for the sake of parameters.
            raise MessageError(f"{topic}: {len(payload)} bytes are too many")
        if topic == self._topic(topics.ACK):
            ack = messages.decode(payload, Ack, topic=topic)
            self._sender.acknowledged(ack.boot, ack.seq)
            self._reporter.wake()
        elif topic == self._topic(topics.DESIRED):
            if payload and self._want is not None:
                desired = self._desired(payload, topic=topic)
                self._want(desired)
                if self._report is not None and self._report().serial == desired.serial:
                    # Said again: that it was taken may not have been heard.
                    self.changed()
        elif topic == self._topic(topics.STATUS):
            if payload:
                self._heard(messages.decode(payload, Status, topic=topic))
        elif (number := self._command(topic)) is not None:
            if payload and self._control is not None:
                self._control.received(number, payload)
        elif self._trainer is not None:
            self._to_trainer(self._trainer, topic, payload)

    def _signed(self, payload: bytes, *, kind: str, topic: str) -> bytes:
        """What whoever may command this device has signed; as it came where nothing is signed."""
        if self._identity is None:
            return payload
        return envelope.open_(payload, kind=kind, trusted=self._identity.control_keys, what=topic)

    def _desired(self, payload: bytes, *, topic: str) -> Desired:
        """A wish that is meant for this device, by whoever may wish."""
        signed = self._signed(payload, kind=envelope.DESIRED, topic=topic)
        desired = messages.decode(signed, Desired, topic=topic)
        if self._identity is not None and desired.device != self._name:
            raise MessageError(f"{topic}: signed for {desired.device!r}, this is {self._name}")
        return desired

    def _to_trainer(self, trainer: Trainer, topic: str, payload: bytes) -> None:
        found = re.search(rf"/{topics.ROUNDS}/([^/]+)/({topics.OPEN}|{topics.PARAMETERS})\Z", topic)
        if found is None:
            raise MessageError(f"{topic} is no topic of a device")
        round_id, leaf = found.groups()
        if leaf == topics.PARAMETERS:
            trainer.parameters(round_id, payload)
        elif not payload:
            trainer.ended(round_id)
        else:
            signed = self._signed(payload, kind=envelope.ROUND, topic=topic)
            opened = messages.decode(signed, RoundOpen, topic=topic)
            if (opened.site, opened.round) != (self._device.site, round_id):
                raise MessageError(f"{topic}: says that it is {opened.round} of {opened.site}")
            trainer.opened(opened)

    def _command(self, topic: str) -> str | None:
        return command_id(topic.removeprefix(self._topic("")))

    def _publish_counted(self, kind: Kind, payload: bytes) -> bool:
        return self.link.publish(self._topic(kind), payload)

    def _status(self, *, online: bool) -> bytes:
        status: Message = Status(
            online=online, boot=self._boot, profile=self._device.profile, version=__version__
        )
        return messages.encode(status)

    def _topic(self, leaf: str) -> str:
        return topics.device(self._device.site, self._device.id, leaf)


def _broker(fleet: FleetSection, identity: Identity | None) -> str:
    """Where the broker is: as the configuration says, else as the enrolment did."""
    address = fleet.broker or (identity.broker if identity else None)
    assert address is not None  # checked with the configuration
    return address
