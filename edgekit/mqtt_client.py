"""MQTT client: paho's, with a bound on what a broker can make it hold.

MQTT lets a packet be 256 MB long, and paho takes in whatever is announced before anybody can look
at it. A message at QoS 2 it keeps until the broker says that it may go. Promise: a longer packet
than was told ends the connection before its content is read, and so does a message at QoS 2, which
nobody here asked for; a broker costs a device its link and never its memory.
"""

from __future__ import annotations

from typing import Any

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

# The bits of a PUBLISH packet's first byte that say its QoS.
_QOS_BITS = 0b0110


class BoundedClient(mqtt.Client):
    """A client for MQTT 3.1.1 that takes no packet longer than `max_packet_bytes`.

    Args:
        client_id: also the identity that the broker knows.
        max_packet_bytes: of what follows the fixed header.
    """

    def __init__(self, *, client_id: str, max_packet_bytes: int) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True)
        self._max_packet_bytes = max_packet_bytes

    def _sock_recv(self, bufsize: int) -> Any:
        # What is asked for is what is left of the packet: paho has no other place to look at it.
        if bufsize > self._max_packet_bytes:
            raise OSError(
                f"the broker sends a packet of {bufsize} bytes, at most {self._max_packet_bytes}"
                " are taken"
            )
        return super()._sock_recv(bufsize)

    def _handle_publish(self) -> MQTTErrorCode:
        if (self._in_packet["command"] & _QOS_BITS) >> 1 > 1:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return super()._handle_publish()
