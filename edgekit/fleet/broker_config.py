"""Broker configuration: mutual TLS and one identity for each device, for NATS and for mosquitto.

Rule: a device writes its own leaves and its updates of rounds, and reads what is for it; all else
is refused. The name that a broker knows is the subject of the certificate, whatever the client
calls itself. Who is listed is in a file of its own (`nats-users.conf`, `mosquitto.acl`), which is
replaced whole and read again at SIGHUP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgekit import topics
from edgekit.fleet.address import Address
from edgekit.fleet.authority import COORDINATOR, Subject
from edgekit.link import MAX_PACKET_BYTES

NATS_USERS = "nats-users.conf"
NATS = "nats.conf"
MOSQUITTO = "mosquitto.conf"
ACL = "mosquitto.acl"
REVOCATIONS = "crl.pem"
AUTHORITY = "ca.crt"

_ROUNDS = f"{topics.ROOT}/+/{topics.ROUNDS}/+"


class Rights(NamedTuple):
    """Topic filters that one identity may publish to, and subscribe to."""

    user: str
    write: tuple[str, ...]
    read: tuple[str, ...]


def device_rights(subject: Subject) -> Rights:
    """What the architecture gives a device: its own leaves, and its part in rounds of its site."""
    site, device = subject.site, subject.device

    def own(*leaves: str) -> tuple[str, ...]:
        return tuple(topics.device(site, device, leaf) for leaf in leaves)

    rounds = f"{topics.ROOT}/{site}/{topics.ROUNDS}/+"
    return Rights(
        user=subject.user,
        write=(
            *own(topics.STATUS, topics.TELEMETRY, topics.EVENT, topics.REPORTED),
            *own("cmd/+/result"),
            f"{rounds}/update/{device}",
        ),
        # Its own status: to contradict the last will of a connection that is over.
        read=(
            *own(topics.DESIRED, topics.ACK, topics.STATUS, "cmd/+"),
            f"{rounds}/{topics.OPEN}",
            f"{rounds}/{topics.PARAMETERS}",
        ),
    )


def coordinator_rights() -> Rights:
    """What the coordinator writes; it reads everything below the root."""
    every = f"{topics.ROOT}/+/+"
    return Rights(
        user=COORDINATOR,
        write=(
            *(f"{every}/{leaf}" for leaf in (topics.DESIRED, topics.ACK, "cmd/+")),
            f"{_ROUNDS}/{topics.OPEN}",
            f"{_ROUNDS}/{topics.PARAMETERS}",
        ),
        read=(f"{topics.ROOT}/#",),
    )


def everyone(devices: Iterable[Subject]) -> list[Rights]:
    """The coordinator first, then the devices in the order of their names."""
    return [coordinator_rights(), *(device_rights(subject) for subject in sorted(devices))]


def nats(*, listen: Address, tls: Path, store: Path, log: Path | None, users: str) -> str:
    """The configuration of nats-server.

    Args:
        listen: where MQTT clients connect.
        tls: folder of `server.crt`, `server.key` and `ca.crt`.
        store: folder of the store.
        log: its log; `None` logs to stderr.
        users: path of the file that `nats_users` makes, relative to this configuration's folder.
    """
    files = "\n".join(
        f'  {name}: "{tls / file}"'
        for name, file in (
            ("cert_file", "server.crt"),
            ("key_file", "server.key"),
            ("ca_file", AUTHORITY),
        )
    )
    mutual = f"tls {{\n{files}\n  verify_and_map: true\n  timeout: 10\n}}"
    logged = f'log_file: "{log}"\nlog_size_limit: 10485760\nlog_max_num: 3\n' if log else ""
    # NATS' own protocol cannot be switched off: it stays on loopback, and asks for the same
    # certificates, for a listed user has no password that could be asked for.
    return f"""\
server_name: edgekit
host: "127.0.0.1"
port: -1
max_payload: {MAX_PACKET_BYTES}
{logged}jetstream {{ store_dir: "{store}", sync_interval: "10s" }}
{mutual}
mqtt {{
host: "{listen.host}"
port: {listen.port}
{mutual}
}}
include "{users}"
"""


def nats_users(rights: Sequence[Rights]) -> str:
    """The `authorization` of nats-server."""
    users = "\n".join(_nats_user(one) for one in rights)
    return f"authorization {{\nusers: [\n{users}\n]\n}}\n"


def mosquitto(*, listen: Address, folder: Path) -> str:
    """The configuration of mosquitto, whose other files are in `folder`.

    It runs without a store of its own: acknowledged messages are kept by coordinator and devices,
    and both say again what is retained whenever they connect.
    """
    return f"""\
per_listener_settings false
persistence false
allow_anonymous false
acl_file {folder / ACL}
pid_file {folder / "mosquitto.pid"}
max_inflight_messages 1000
max_queued_messages 100000
message_size_limit {MAX_PACKET_BYTES}
listener {listen.port} {listen.host}
cafile {folder / AUTHORITY}
certfile {folder / "server.crt"}
keyfile {folder / "server.key"}
crlfile {folder / REVOCATIONS}
tls_version tlsv1.2
require_certificate true
use_subject_as_username true
use_username_as_clientid true
"""


def mosquitto_acl(rights: Sequence[Rights]) -> str:
    """The access list of mosquitto; who is not in it may do nothing."""
    blocks = []
    for one in rights:
        lines = [f"user {one.user}"]
        lines += [
            f"topic {_access(one, topic)} {topic}"
            for topic in {**dict.fromkeys(one.write), **dict.fromkeys(one.read)}
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _access(rights: Rights, topic: str) -> str:
    if topic not in rights.read:
        return "write"
    return "readwrite" if topic in rights.write else "read"


def _nats_user(rights: Rights) -> str:
    write = _quoted(_subject(topic) for topic in rights.write)
    # A filter that ends in # also asks for its parent; what comes at QoS 1 comes over $MQTT.sub.
    read = _quoted(
        [
            *(_subject(topic) for topic in rights.read),
            *(_subject(topic.removesuffix("/#")) for topic in rights.read if topic.endswith("/#")),
            "$MQTT.sub.>",
        ]
    )
    return (
        f'{{ user: "{rights.user}", permissions: '
        f"{{ publish: {{ allow: [{write}] }}, subscribe: {{ allow: [{read}] }} }} }}"
    )


def _subject(topic: str) -> str:
    """A topic filter of MQTT as a subject of NATS."""
    return topic.replace("/", ".").replace("+", "*").replace("#", ">")


def _quoted(items: Iterable[str]) -> str:
    return ", ".join(f'"{item}"' for item in items)
