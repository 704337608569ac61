"""The coordinator over HTTP: publishing, the repository, and who may ask."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from edgekit.errors import UntrustedError
from edgekit.fleet.client import Client
from tests import bundles
from tests.fleet.processes import Fleet, download, edgekit

Write = Callable[..., Path]


def request(
    fleet: Fleet, method: str, path: str, *, headers: dict[str, str], body: bytes = b"{}"
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(urlsplit(fleet.url).netloc, timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if content.startswith(b"{") else {}


def publish(fleet: Fleet, path: Path) -> dict[str, Any]:
    return fleet.client.send_file("/api/bundles", path, dict[str, Any])


def test_a_published_bundle_is_served_whole_and_by_range(fleet: Fleet, write_bundle: Write) -> None:
    path = write_bundle("1.0.0", name="served")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()

    assert publish(fleet, path)["bundle"]["file_sha256"] == sha256

    status, whole, headers = download(f"{fleet.repository}{sha256}.edge")
    assert (status, whole) == (200, content)
    assert headers["etag"] == f'"{sha256}"'
    status, part, headers = download(f"{fleet.repository}{sha256}.edge", span="bytes=4096-8191")
    assert (status, part) == (206, content[4096:8192])
    assert headers["content-range"] == f"bytes 4096-8191/{len(content)}"


def test_publishing_the_same_twice_changes_nothing(fleet: Fleet, write_bundle: Write) -> None:
    path = write_bundle("1.0.0", name="twice")

    first, second = publish(fleet, path), publish(fleet, path)

    assert (first["new"], second["new"]) == (True, False)
    assert first["bundle"] == second["bundle"]


def test_another_bundle_under_a_published_version_is_refused(
    fleet: Fleet, write_bundle: Write
) -> None:
    publish(fleet, write_bundle("1.0.0", name="taken", seed=0))
    other = write_bundle("1.0.0", name="taken", seed=1)

    done = edgekit("publish", str(other), "--coordinator", fleet.url)

    assert done.returncode == 8
    assert "published already" in done.stderr


@pytest.mark.parametrize("position", [10, 5000, -30])
def test_a_bundle_with_one_changed_byte_is_refused(
    fleet: Fleet, write_bundle: Write, position: int
) -> None:
    path = write_bundle("1.0.0", name="changed")
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)

    done = edgekit("publish", str(path), "--coordinator", fleet.url)

    assert done.returncode == 4
    assert "the bundle is refused" in done.stderr
    assert ".incoming" not in done.stderr


def test_a_bundle_signed_by_a_stranger_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    path = bundles.write(tmp_path, name="stranger", version="1.0.0")

    with pytest.raises(UntrustedError, match="not one of 1 trusted keys"):
        publish(fleet, path)


def test_what_is_no_bundle_at_all_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "noise.edge"
    for content in (b"", b"PK\x03\x04", bytes(100_000)):
        path.write_bytes(content)
        assert edgekit("publish", str(path), "--coordinator", fleet.url).returncode == 4


def test_a_name_that_is_no_digest_reaches_no_file(fleet: Fleet) -> None:
    for name in ("..%2ffleet.sqlite", "0" * 64 + ".edge", ".lock"):
        status, _ = request(fleet, "GET", f"/repository/{name}", headers={})
        assert status == 404


def test_a_foreign_page_cannot_change_the_fleet(fleet: Fleet) -> None:
    status, body = request(
        fleet, "POST", "/api/rollouts", headers={"Origin": "http://evil.example"}
    )
    assert status == 403
    assert "may not change this fleet" in body["error"]

    status, body = request(fleet, "POST", "/api/rollouts", headers={"Origin": fleet.url})
    assert status == 400
    assert "missing required field `model`" in body["error"]


def test_a_foreign_host_name_is_refused(fleet: Fleet) -> None:
    status, _ = request(fleet, "GET", "/api/overview", headers={"Host": "evil.example"})

    assert status == 400


def test_errors_are_json_with_a_hint(fleet: Fleet) -> None:
    status, body = request(fleet, "GET", "/api/rollouts/999", headers={})

    assert status == 404
    assert body == {
        "error": "there is no rollout 999",
        "hint": "edgekit rollout list shows them",
        "kind": "UnknownId",
        "exit_code": 8,
    }


def test_the_page_and_its_parts_are_there(fleet: Fleet) -> None:
    for path in ("/", "/web/app.js", "/web/style.css", "/web/icon.svg"):
        status, content, headers = download(fleet.url + path)
        assert status == 200
        assert content
        assert headers["content-security-policy"].startswith("default-src 'self'")


def test_live_updates_begin_with_the_whole_picture(fleet: Fleet) -> None:
    with urllib.request.urlopen(f"{fleet.url}/api/live", timeout=10) as stream:
        line = stream.readline()

    assert line.startswith(b"data: ")
    assert json.loads(line[6:])["connected"] is True


def test_metrics_are_prometheus_text(fleet: Fleet) -> None:
    _, content, _ = download(f"{fleet.url}/metrics")

    assert b'edgekit_messages_total{outcome="stored"}' in content
    assert b"edgekit_link_up 1.0" in content


def test_commands_say_when_no_coordinator_is_there() -> None:
    for command in (["fleet", "devices"], ["rollout", "list"], ["round", "list"]):
        done = edgekit(*command, "--coordinator", "http://127.0.0.1:9")
        assert done.returncode == 7
        assert "no coordinator answers" in done.stderr
        assert "hint: " in done.stderr


def test_a_coordinator_without_broker_says_so(tmp_path: Path) -> None:
    done = edgekit(
        *("coordinator", "--listen", "127.0.0.1:0", "--broker", "mqtt://127.0.0.1:9"),
        *("--state", str(tmp_path)),
    )

    assert done.returncode == 7
    assert "no MQTT broker answers at 127.0.0.1:9" in done.stderr


def test_a_state_folder_has_one_coordinator(fleet: Fleet) -> None:
    done = edgekit(
        *("coordinator", "--listen", "127.0.0.1:0", "--broker", fleet.mqtt),
        *("--state", str(fleet.coordinator.said["state"])),
    )

    assert done.returncode == 7
    assert "another coordinator uses the state folder" in done.stderr


def test_a_url_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(Exception, match="not a coordinator's address"):
        Client("ftp://somewhere")
