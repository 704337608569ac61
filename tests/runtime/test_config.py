"""The daemon's configuration: what is wrong is named, what is left out has a default."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import ConfigError
from edgekit_runtime import config
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.settings import Settings
from edgekit_runtime.serving.tls import Tls

DEVICE = '[device]\nsite = "demo"\nid = "board-1"\nprofile = "generic-x86_64"\n'
FLEET = '[fleet]\ninsecure = true\nbroker = "mqtt://127.0.0.1:1883"\nrepository = "http://127.0.0.1:8600/r/"\n'


def read(text: str) -> config.Config:
    return config.decode(text.encode(), what="device.toml")


@pytest.mark.parametrize("window", ["", "22:00", "24:00-01:00", "22:00-05:3\u0660", "22:00-05:30 "])
def test_a_window_that_is_none_is_named_with_what_one_looks_like(window: str) -> None:
    text = f'{DEVICE}[update]\nwindow = "{window}"\n'

    with pytest.raises(ConfigError, match="HH:MM-HH:MM"):
        config.decode(text.encode(), what="device.toml")


def test_a_board_without_a_fleet_needs_only_its_name() -> None:
    found = read(DEVICE)

    assert found.fleet is None
    assert found.training is None
    assert found.serve.listen == "127.0.0.1:8500"
    assert found.state.folder == Path("/var/lib/edgekit")
    assert found.trust.keys == ()


def test_every_section_is_read() -> None:
    found = read(
        DEVICE
        + '[state]\nfolder = "/s"\n[serve]\nlisten = ""\nunix = "/run/e.sock"\n'
        + '[trust]\nkeys = ["/k.pub"]\n[update]\nconfirm_after_s = 5\n'
        + FLEET
        + '[training]\ndata = "/d.npz"\nmodels = ["digits"]\nmax_seconds = 20\n'
    )

    assert found.fleet is not None
    assert found.training is not None
    assert found.serve.unix == Path("/run/e.sock")
    assert found.trust.keys == (Path("/k.pub"),)
    assert found.update.confirm_after_s == 5
    assert found.training.models == ("digits",)


def test_serving_is_told_in_the_units_that_people_write() -> None:
    found = read(
        DEVICE
        + '[serve]\nlisten = "0.0.0.0:8500"\ngrpc = "0.0.0.0:8501"\nbell = "/run/e.bell"\n'
        + 'tokens = "/etc/edgekit/tokens"\nworkers = "process"\nqueue_limit = 8\nmemory_mb = 512\n'
        + "cache_mb = 4\nladder = false\ncascade = 0.8\nconnections = 100\n"
        + '[serve.tls]\ncert = "/c"\nkey = "/k"\nclient_ca = "/ca"\n'
    ).serve

    assert found.settings == Settings(
        workers="process",
        queue_limit=8,
        memory_bytes=512 << 20,
        cache_bytes=4 << 20,
        ladder=False,
        cascade=0.8,
    )
    assert found.tls == Tls(cert=Path("/c"), key=Path("/k"), client_ca=Path("/ca"))
    assert (found.grpc, found.tokens) == ("0.0.0.0:8501", Path("/etc/edgekit/tokens"))


def test_what_is_not_said_of_serving_is_what_the_server_does_by_itself() -> None:
    assert config.ServeSection().settings == Settings()
    assert config.ServeSection().connections == Limits().connections


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (DEVICE + "[serve]\nlisten_on = 1\n", r"device.toml: .*listen_on.*\$\.serve"),
        (DEVICE + "[colour]\n", "colour"),
        (DEVICE.replace("board-1", "Board 1"), r"\$\.device\.id"),
        (DEVICE.replace("board-1", "rounds"), "rounds"),
        (DEVICE + '[serve]\nlisten = ""\n', "nothing could be served"),
        (DEVICE + '[serve]\nlisten = "8500"\n', "'8500' is not an address"),
        (DEVICE + '[serve]\ngrpc = "here"\n', "'here' is not an address"),
        (DEVICE + '[serve]\nworkers = "many"\n', r"\$\.serve\.workers"),
        (DEVICE + "[serve]\nqueue_limit = 0\n", r"\$\.serve\.queue_limit"),
        (DEVICE + "[serve]\nmemory_mb = -1\n", r"\$\.serve\.memory_mb"),
        (DEVICE + "[serve]\ncascade = 1.5\n", r"\$\.serve\.cascade"),
        (DEVICE + "[serve]\nconnections = 0\n", r"\$\.serve\.connections"),
        (DEVICE + '[serve.tls]\ncert = "/c"\n', r"key.*\$\.serve\.tls"),
        (DEVICE + '[serve]\ntoken = "secret"\n', "token"),
        (DEVICE + '[trust]\nkeys = [""]\n', r"\$\.trust\.keys"),
        (DEVICE + FLEET.replace("mqtt:", "http:"), "broker"),
        (DEVICE + FLEET.replace("http:", "ftp:"), "repository"),
        (DEVICE + FLEET.replace("/r/", "/r"), "must end in /"),
        (DEVICE + '[training]\ndata = "/d"\nmodels = ["m"]\n', r"\[training\] needs \[fleet\]"),
        (DEVICE + FLEET + '[training]\ndata = "/d"\nmodels = []\n', r"\$\.training\.models"),
        ("[device\n", "not TOML"),
        ("", "device"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        config.read(tmp_path / "nowhere.toml")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_configuration_are_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError, match=r"device\.toml"):
        config.decode(raw, what="device.toml")
