"""The MQTT tree: `edgekit/v1/{site}/{device}/…` and `edgekit/v1/{site}/rounds/{round}/…`."""

from __future__ import annotations

import re

import msgspec

from edgekit.errors import MessageError

ROOT = "edgekit/v1"
ID = r"^[a-z0-9-]{1,63}\Z"

# What hangs below a device; the first five and the rounds' updates are the device's to write.
STATUS = "status"
TELEMETRY = "telemetry"
EVENT = "event"
REPORTED = "state/reported"
DESIRED = "state/desired"
ACK = "ack"

# What hangs below a round.
OPEN = "open"
PARAMETERS = "parameters"

ROUNDS = "rounds"


class DeviceTopic(msgspec.Struct, frozen=True):
    """A topic of one device, taken apart."""

    site: str
    device: str
    leaf: str


class UpdateTopic(msgspec.Struct, frozen=True):
    """The topic of a device's update in a round, taken apart."""

    site: str
    round: str
    device: str


def device(site: str, device_id: str, leaf: str) -> str:
    """`edgekit/v1/{site}/{device}/{leaf}`."""
    return f"{ROOT}/{check_id(site, 'site')}/{check_id(device_id, 'device')}/{leaf}"


def round_open(site: str, round_id: str) -> str:
    """Where the coordinator opens a round (retained)."""
    return f"{_round(site, round_id)}/{OPEN}"


def round_parameters(site: str, round_id: str) -> str:
    """Where the coordinator puts the parameters of a round (retained)."""
    return f"{_round(site, round_id)}/{PARAMETERS}"


def round_update(site: str, round_id: str, device_id: str) -> str:
    """Where a device answers in a round."""
    return f"{_round(site, round_id)}/update/{check_id(device_id, 'device')}"


def every_round_open(site: str) -> str:
    """The filter by which a device hears of rounds."""
    return f"{ROOT}/{check_id(site, 'site')}/{ROUNDS}/+/{OPEN}"


def every_device(site: str, leaf: str) -> str:
    """The filter by which a coordinator hears one leaf of every device."""
    return f"{ROOT}/{check_id(site, 'site')}/+/{leaf}"


def every_update(site: str) -> str:
    """The filter by which a coordinator hears updates of every round."""
    return f"{ROOT}/{check_id(site, 'site')}/{ROUNDS}/+/update/+"


def parse(topic: str) -> DeviceTopic | UpdateTopic | None:
    """Take a topic apart; `None` for one that is not of a device."""
    match = re.match(rf"{ROOT}/([a-z0-9-]{{1,63}})/([a-z0-9-]{{1,63}})/([a-z0-9/-]+)\Z", topic)
    if match is None:
        return None
    site, device_id, leaf = match.groups()
    if device_id != ROUNDS:
        return DeviceTopic(site, device_id, leaf)
    update = re.match(r"([a-z0-9-]{1,63})/update/([a-z0-9-]{1,63})\Z", _after(topic, site))
    return UpdateTopic(site, update[1], update[2]) if update else None


def check_id(value: str, what: str) -> str:
    """`value` if it can be an id of a site, device or round, else `MessageError`."""
    if re.match(ID, value) is None or (what == "device" and value == ROUNDS):
        raise MessageError(
            f"{value!r} cannot be the id of a {what}",
            hint="ids have 1 to 63 of a-z, 0-9 and -; no device is called rounds",
        )
    return value


def _round(site: str, round_id: str) -> str:
    return f"{ROOT}/{check_id(site, 'site')}/{ROUNDS}/{check_id(round_id, 'round')}"


def _after(topic: str, site: str) -> str:
    return topic.removeprefix(f"{ROOT}/{site}/{ROUNDS}/")
