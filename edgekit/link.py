"""Link: publish and subscribe over MQTT, with reconnection and retained presence.

Nothing waits in memory for a link that is down: `publish` says whether the message was handed
over, and whoever must not lose it (the outbox) keeps it until the other end has acknowledged it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from edgekit.errors import ConfigError, MessageError

log = logging.getLogger(__name__)

# Above this a broker may close the connection, and the client would send the same for ever.
MAX_PACKET_BYTES = 64 << 20
# Of a packet beside its payload: the longest topic, and what the protocol adds.
OVERHEAD_BYTES = 66 << 10
KEEPALIVE_S = 20
MAX_IN_FLIGHT = 200

Qos = Literal[0, 1]


class Broker(NamedTuple):
    """Where a broker is; `mqtt://host:port`, or `mqtts://` with TLS."""

    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Broker:
        """Read a URL, raising `ConfigError` for one that is not a broker's."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as e:
            raise ConfigError(f"broker {url!r}: {e}") from e
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/"):
            raise ConfigError(
                f"broker {url!r} is not a broker's address", hint="write mqtt://HOST:PORT"
            )
        tls = parts.scheme == "mqtts"
        return cls(parts.hostname, port or (8883 if tls else 1883), tls)


class Tls(NamedTuple):
    """Files of a mutual TLS connection; they are read again at every connection."""

    ca: Path
    certificate: Path
    key: Path


class Will(NamedTuple):
    """What the broker publishes (retained) when this client is gone."""

    topic: str
    payload: bytes


class Link(Protocol):
    """A connection that comes and goes."""

    @property
    def connected(self) -> bool: ...

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand a message over at QoS 1; `False` while there is no connection or no room."""
        ...

    def subscribe(self, topic: str, *, qos: Qos = 1) -> None:
        """Hear one more topic filter, now and at every connection."""
        ...

    def unsubscribe(self, topic: str) -> None:
        """Hear a topic filter no more."""
        ...

    def close(self) -> None: ...


class MqttLink:
    """A link through paho-mqtt, in one background thread of its own.

    Args:
        broker: where to connect to.
        client_id: also the identity that the broker knows.
        filters: topic filters to subscribe to at every connection, at QoS 1.
        at_most_once: further ones at QoS 0. For a state that is retained that is the surer way:
            nats-server may forget a message for QoS 1 while the consumers of a client that is gone
            are removed, and the last will of that client is sent just then.
        on_message: called with topic and payload in the link's thread. It may block: the broker
            is then held back, and memory stays bounded.
        on_connect: called in the link's thread once the broker has taken the subscriptions: what is
            published from then on is heard.
        will: what the broker says when this client is gone.
        tls: for `mqtts://`.
        keepalive_s: longest silence; a link that is gone is noticed after half as long again.
        max_payload_bytes: a broker that sends a longer one loses the connection, before it is read.

    Raises:
        ConfigError: `mqtts://` without certificates, or with files that are none.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        client_id: str,
        filters: Sequence[str],
        on_message: Callable[[str, bytes], None],
        on_connect: Callable[[], None],
        will: Will | None = None,
        tls: Tls | None = None,
        at_most_once: Sequence[str] = (),
        keepalive_s: int = KEEPALIVE_S,
        max_payload_bytes: int = MAX_PACKET_BYTES,
    ) -> None:
        # Imported here: it costs 90 ms, and a board without a fleet has no link.
        from paho.mqtt import client as mqtt

        from edgekit.mqtt_client import BoundedClient

        self._broker = broker
        self._keepalive_s = keepalive_s
        self._filters: dict[str, Qos] = {
            **dict.fromkeys(filters, 1),
            **dict.fromkeys(at_most_once, 0),
        }
        self._on_message = on_message
        self._on_connect = on_connect
        self._success = mqtt.MQTT_ERR_SUCCESS
        self._client = BoundedClient(
            client_id=client_id, max_packet_bytes=max_payload_bytes + OVERHEAD_BYTES
        )
        self._client.max_inflight_messages_set(MAX_IN_FLIGHT)
        self._client.max_queued_messages_set(MAX_IN_FLIGHT)
        self._client.reconnect_delay_set(min_delay=1, max_delay=60)
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._trouble = _Trouble()
        self._client.enable_logger(self._trouble.logger)
        self._refused: str | None = None
        self._asked: int | None = None  # the subscriptions of this connection, until it is answered
        if broker.tls:
            if tls is None:
                raise ConfigError(
                    f"broker {broker.host} wants TLS, and no certificate is set",
                    hint="edgekit device enroll gets one",
                )
            context = tls_context(tls)
            self._client.tls_set_context(context)
            self._client.on_pre_connect = lambda *_: _load_again(context, tls)
        self._client.on_connect_fail = self._failed
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = self._received
        self._client.on_subscribe = self._subscribed

    @property
    def connected(self) -> bool:
        return self._client.is_connected()

    @property
    def refused(self) -> str | None:
        """Why the latest attempt to connect failed; `None` while the link is up."""
        return self._refused

    def start(self) -> None:
        self._client.connect_async(
            self._broker.host, self._broker.port, keepalive=self._keepalive_s
        )
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if len(payload) > MAX_PACKET_BYTES:
            raise MessageError(f"{topic}: {len(payload)} bytes, at most {MAX_PACKET_BYTES} travel")
        if not self._client.is_connected():
            return False
        return self._client.publish(topic, payload, qos=1, retain=retain).rc == self._success

    def subscribe(self, topic: str, *, qos: Qos = 1) -> None:
        # Replaced, not changed: the link's thread may be reading it.
        self._filters = self._filters | {topic: qos}
        if self._client.is_connected():
            self._client.subscribe(topic, qos)

    def unsubscribe(self, topic: str) -> None:
        self._filters = {name: qos for name, qos in self._filters.items() if name != topic}
        if self._client.is_connected():
            self._client.unsubscribe(topic)

    def reconnect(self) -> None:
        """Drop the connection and make a new one, with the certificates as they are now.

        The will is heard, as after any lost connection.
        """
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):  # gone already
                # Only the socket below: TLS has a state that belongs to the link's thread.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """Disconnect in good order; the broker then keeps the will to itself."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(
        self, client: Any, _userdata: Any, _flags: Any, reason: Any, _props: Any
    ) -> None:
        if reason.is_failure:
            # It ends the connection next, and that says less.
            self._trouble.text = f"the broker says: {reason}"
            return
        self._refused = None
        self._trouble.text = ""
        log.info("link up", extra={"broker": f"{self._broker.host}:{self._broker.port}"})
        if self._filters:
            # Answered in `_subscribed`: until then the broker may keep what is published to itself.
            _, self._asked = client.subscribe(list(self._filters.items()))
        else:
            self._on_connect()

    def _disconnected(
        self, _client: Any, _data: Any, _flags: Any, reason: Any, _props: Any
    ) -> None:
        # A broker that does not take a certificate ends the connection right after its start.
        if not reason.is_failure or self._client.is_connected():
            log.info("link down", extra={"reason": str(reason)})
        else:
            # NATS ends it without a word where it does not know who connects.
            self._refuse(self._trouble.text or f"the broker ended the connection ({reason})")
        self._trouble.text = ""

    def _failed(self, _client: Any, _userdata: Any) -> None:
        self._refuse(str(sys.exc_info()[1] or "no connection"))

    def _refuse(self, reason: str) -> None:
        if reason != self._refused:
            log.warning("no link", extra={"broker": self._broker.host, "reason": reason})
        self._refused = reason

    def _subscribed(
        self, _client: Any, _userdata: Any, asked: Any, reasons: Sequence[Any], _props: Any
    ) -> None:
        # A broker may refuse one filter and keep the connection: nothing else would tell.
        for reason in reasons:
            if reason.is_failure:
                log.error("broker refused a subscription", extra={"reason": str(reason)})
        if asked == self._asked:
            self._asked = None
            self._on_connect()

    def _received(self, _client: Any, _userdata: Any, message: Any) -> None:
        try:
            self._on_message(message.topic, message.payload)
        except MessageError as e:
            log.warning("message dropped", extra={"topic": message.topic, "error": str(e)})
        except Exception:  # what nobody foresaw must not end the link's thread without a word
            log.exception("message failed", extra={"topic": message.topic})


class _Trouble(logging.Handler):
    """The last error in paho's own log: nowhere else it tells why a connection was lost."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        # Not among the loggers by name: each link has its own, and nothing else of it is kept.
        self.logger = logging.Logger("paho", level=logging.ERROR)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def tls_context(tls: Tls) -> ssl.SSLContext:
    """What a client needs to connect with these files, raising `ConfigError` for unusable ones."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls)
    return context


def _load_again(context: ssl.SSLContext, tls: Tls) -> None:
    try:
        _load(context, tls)
    except ConfigError as e:  # the link goes on with those it has
        log.error("certificates cannot be read", extra={"error": str(e)})


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    try:
        context.load_verify_locations(tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as e:  # what ssl raises is one too
        raise ConfigError(f"{tls.certificate}, its key or {tls.ca} is not usable: {e}") from e
