"""What an operator reads on the fleet's command line, over a real broker and coordinator."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import topics
from edgekit.errors import UsageError
from edgekit.fleet import starting, wording
from edgekit.fleet.address import Address
from edgekit.fleet.folder import Facts
from edgekit.messages import Event, ModelState
from edgekit_converters.demo.processes import free_port
from tests.fleet.device_simulator import DeviceSimulator
from tests.fleet.processes import Fleet, edgekit, until

Write = Callable[..., Path]
OLD = "sha256:" + "0" * 64


def lines(fleet: Fleet, *arguments: str) -> list[str]:
    done = edgekit(*arguments, "--coordinator", fleet.url)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    return done.stdout.splitlines()


def head(table: list[str]) -> list[str]:
    """The names of its columns, of which the last may be below the others."""
    words = " ".join(table).split()
    return [word for word in words if word.isupper() and word.isalpha()]


def tell(device: DeviceSimulator, seq: int, kind: str, message: str, **facts: str) -> None:
    body = Event(
        boot=device.boot, seq=seq, floor=1, at=1, kind=kind, message=message, facts={**facts}
    )
    device.publish(topics.EVENT, body)
    until(lambda: device.acked.get(device.boot, 0) >= seq)


def test_events_are_listed_by_device_and_kind(fleet: Fleet) -> None:
    with (
        DeviceSimulator(fleet.mqtt, "told") as device,
        DeviceSimulator(fleet.mqtt, "else") as other,
    ):
        tell(device, 1, "update_failed", "scan: a very long story " * 8)
        tell(device, 2, "rolled_back", "scan: asked")
        tell(other, 1, "rolled_back", "mine")

    both = lines(fleet, "fleet", "events", "--device", "told")
    one = lines(fleet, "fleet", "events", "--device", "default/told", "--kind", "rolled_back")
    last = edgekit("fleet", "events", "--limit", "1", "--json", "--coordinator", fleet.url)
    nobody = edgekit("fleet", "events", "--device", "nobody", "--coordinator", fleet.url)
    none = lines(fleet, "fleet", "events", "--kind", "never")

    assert head(both) == ["RECEIVED", "LEVEL", "KIND", "DEVICE", "MESSAGE"]
    kinds = [line.split()[3] for line in both if re.match(r"\d{4}-", line)]
    assert kinds == ["rolled_back", "update_failed"]
    assert "info rolled_back default/told scan: asked" in " ".join(" ".join(one).split())
    (event,) = json.loads(last.stdout)["events"]
    assert (event["device"], event["message"]) == ("default/else", "mine")
    assert (nobody.returncode, "nobody" in nobody.stderr) == (8, True)
    assert none == ["no such event was reported yet"]


@pytest.mark.parametrize("query", ["limit=0", "limit=many", "limit=1001", "colour=red"])
def test_a_query_for_events_that_is_none_is_refused(fleet: Fleet, query: str) -> None:
    with pytest.raises(UsageError, match="query for events"):
        fleet.client.get(f"/api/events?{query}", dict[str, object])


def test_devices_say_what_serves_and_when_they_were_last_seen(fleet: Fleet) -> None:
    with DeviceSimulator(fleet.mqtt, "back") as device:
        device.models["scan"] = ModelState(
            version="1.0.0", digest=OLD, state="rolled_back", target="1.1.0", reason="asked"
        )
        device.report()
        until(lambda: fleet.devices().get("back", {}).get("models"))
        there = lines(fleet, "fleet", "devices")
    until(lambda: fleet.devices()["back"]["online"] is False)
    gone = lines(fleet, "fleet", "devices")

    assert head(there) == ["DEVICE", "CONNECTION", "PROFILE", "MODELS"]
    assert "scan 1.0.0 serves, 1.1.0 rolled back: asked" in " ".join(" ".join(there).split())
    (row,) = [line for line in gone if line.startswith("default/back")]
    assert re.search(r"offline, last seen \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", row)


def test_a_rollout_shows_what_its_devices_do_and_how_their_canaries_ended(
    fleet: Fleet, write_bundle: Write
) -> None:
    published = edgekit(
        "publish", str(write_bundle("1.1.0", name="watched")), "--coordinator", fleet.url, "--json"
    )
    digest = json.loads(published.stdout)["bundle"]["digest"]
    with DeviceSimulator(fleet.mqtt, "watched", behaviour="silent") as device:
        until(lambda: fleet.devices().get("watched", {}).get("online"))
        watch = watching(fleet, "watched", "1.1.0")
        until(lambda: device.desired)
        device._serial = device.desired[-1].serial
        moving = {"version": "1.0.0", "digest": OLD, "target": "1.1.0", "target_digest": digest}
        device.models["watched"] = ModelState(state="canary", progress=0.437, **moving)
        device.report()
        number = said(watch, "canary 40 %")
        shown = lines(fleet, "rollout", "show", number)
        tell(device, 1, "canary_undecided", "watched 1.1.0: there were no live inputs",
             model="watched", version="1.1.0")  # fmt: skip
        done = {**moving, "version": "1.1.0", "digest": digest}
        device.models["watched"] = ModelState(
            state="confirmed", figures={"samples": 0, "block": 0}, **done
        )
        device.report()
        out, _ = watch.communicate(timeout=60)

    assert head(shown[1:]) == ["DEVICE", "WAVE", "OUTCOME", "SERVES", "UPDATE", "NOTE"]
    assert "moving   1.0.0   canary 43 %" in shown[2]
    assert watch.returncode == 0
    told = " ".join(out.split())
    assert "moved 1.1.0 confirmed canary undecided: there were no live inputs; samples 0" in told


def test_who_stops_watching_is_told_that_the_rollout_goes_on(
    fleet: Fleet, write_bundle: Write
) -> None:
    edgekit("publish", str(write_bundle("1.0.0", name="left")), "--coordinator", fleet.url)
    with DeviceSimulator(fleet.mqtt, "left", behaviour="silent"):
        until(lambda: fleet.devices().get("left", {}).get("online"))
        watch = watching(fleet, "left", "1.0.0")
        number = said(watch, "default/left: ")
        watch.send_signal(signal.SIGINT)
        _, told = watch.communicate(timeout=60)

    assert f"interrupted; rollout {number} goes on: edgekit rollout show {number}" in told
    assert watch.returncode == 130
    assert lines(fleet, "rollout", "abort", number)[0].startswith(f"rollout {number}: left")


def watching(fleet: Fleet, name: str, version: str) -> subprocess.Popen[str]:
    """`rollout create --watch` of a model to the device of its name."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", "rollout", "create", "--model", name, "--version",
         version, "--device", name, "--watch", "--coordinator", fleet.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip


def said(watch: subprocess.Popen[str], words: str) -> str:
    """Wait until these words are told; the number of the rollout."""
    assert watch.stderr is not None
    number = ""
    for line in watch.stderr:
        if match := re.match(r"rollout (\d+): ", line):
            number = match[1]
        if words in line:
            return number
    raise AssertionError(f"{words} was never said")


def test_a_coordinator_of_a_fleet_names_who_does_not_answer_and_what_starts_it(
    tmp_path: Path,
) -> None:
    folder, broker, http = tmp_path / "fleet", free_port(), free_port()
    made = edgekit(
        *("fleet", "init", str(folder), "--site", "berlin"),
        *("--broker", f"mqtts://127.0.0.1:{broker}", "--repository", "http://10.0.0.1:8601/r/"),
        *("--coordinator", "http://10.0.0.1:8601"),
    )
    told = edgekit(
        *("coordinator", "--fleet", str(folder), "--listen", f"127.0.0.1:{http}"),
        *("--state", str(tmp_path / "state")),
    )

    assert f"edgekit broker --fleet {folder} starts its broker" in made.stdout
    assert f"edgekit coordinator --fleet {folder} --devices 0.0.0.0:8601 starts" in made.stdout
    assert told.returncode == 7
    assert f"no MQTT broker answers at 127.0.0.1:{broker}" in told.stderr
    assert f"hint: edgekit broker --fleet {folder} starts one" in told.stderr


def facts(coordinator: str) -> Facts:
    return Facts(
        name="f", sites=("s",), broker="mqtts://h:8883", repositories=("http://h/",),
        coordinator=coordinator,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("coordinator", "options"),
    [
        ("http://fleet.example.com:8601", " --devices 0.0.0.0:8601"),
        ("http://fleet.example.com", " --devices 0.0.0.0:80"),
        ("https://fleet.example.com", " --devices 127.0.0.1:8601"),
        ("http://127.0.0.1:8600", ""),
        ("http://127.0.0.1:8601", " --devices 127.0.0.1:8601"),
    ],
)
def test_the_command_that_starts_a_coordinator_opens_the_socket_that_devices_are_told(
    coordinator: str, options: str
) -> None:
    command = starting.coordinator_command(Path("fleet"), facts(coordinator))

    assert command == f"edgekit coordinator --fleet fleet{options}"


def test_a_coordinator_says_where_devices_enrol_or_that_they_cannot() -> None:
    told = facts("http://fleet.example.com:8601")
    here = Address("127.0.0.1", 8600)

    def said(devices: Address | None, *, known: Facts = told) -> str:
        return "\n".join(
            starting.coordinator_told(here, devices, folder=Path("fleet"), facts=known)
        )

    assert "devices enrol and fetch at http://0.0.0.0:8601" in said(Address("0.0.0.0", 8601))
    assert "there is no socket for devices" in said(None)
    assert "edgekit coordinator --fleet fleet --devices 0.0.0.0:8601 opens one" in said(None)
    assert "at the same address" in said(None, known=facts("http://127.0.0.1:8600"))
    demo = starting.coordinator_told(here, None, folder=None, facts=None)
    assert demo == ["coordinator ready, dashboard at http://127.0.0.1:8600/"]


def test_a_broker_says_who_can_reach_it() -> None:
    def told(listen: Address, *, for_fleet: bool = True) -> list[str]:
        return starting.broker_told("mqtts://x", listen, for_fleet=for_fleet)

    assert told(Address("127.0.0.1", 1)) == ["broker ready at mqtts://x"]
    assert "on every address, port 8883" in told(Address("0.0.0.0", 8883))[1]
    assert "by their certificates" in told(Address("10.0.0.1", 8883))[1]
    assert "without a password" in told(Address("10.0.0.1", 1883), for_fleet=False)[1]


versions = st.none() | st.sampled_from(["1.0.0", "1.1.0"])


@given(
    st.builds(
        ModelState,
        version=versions,
        target=versions,
        state=st.sampled_from(["fetching", "canary", "confirmed", "rolled_back", "failed"]),
        reason=st.none() | st.just("asked"),
        progress=st.none() | st.floats(0, 1),
    )
)
def test_only_the_version_that_serves_is_said_to_serve(state: ModelState) -> None:
    told = wording.model("scan", msgspec.to_builtins(state))

    assert "→" not in told
    if state.target not in (None, state.version):
        assert told.startswith(f"scan {state.version or 'none'} serves, {state.target} ")
    elif state.version is None:
        assert told.startswith("scan does not serve (")
    else:
        assert told.startswith(f"scan {state.version} (")
