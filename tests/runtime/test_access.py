"""Who may ask: nobody from another machine without a token or a certificate."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import storage
from edgekit.errors import AccessDenied, ConfigError, UsageError
from edgekit_runtime.serving import tokens
from edgekit_runtime.serving.access import Access, Credentials, Demand, demand
from edgekit_runtime.serving.address import Address, Tcp, Unix, is_loopback
from edgekit_runtime.serving.application import Limits
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server, new_event_loop
from edgekit_runtime.serving.tls import Tls, context
from edgekit_runtime.serving.tokens import TokenFile
from tests import bundles
from tests.runtime.authority import Authority
from tests.runtime.served import (
    HOST,
    Wire,
    get,
    infer,
    inline,
    load,
    output,
    post,
    serving,
    until,
    worker,
)

ANYWHERE = Tcp("0.0.0.0", 0)
READER, ADMIN = "r" * 32, "a" * 32
LINES = f"# who\n\ncamera {READER}\noperator {ADMIN} admin\n"
SAMPLES = bundles.samples(2)
TLS = Tls(cert=Path("c"), key=Path("k"))
MUTUAL = Tls(cert=Path("c"), key=Path("k"), client_ca=Path("ca"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    storage.write(path, LINES.encode(), mode=0o600)
    return path


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


# What a listener demands.


@given(
    address=st.sampled_from([Tcp("0.0.0.0", 1), Tcp("::", 1), Tcp("10.1.2.3", 1), Tcp("board", 1)]),
    has_tokens=st.booleans(),
    tls=st.sampled_from([None, TLS, MUTUAL]),
)
def test_strangers_are_never_let_in_unless_somebody_says_so_by_name(
    address: Tcp, has_tokens: bool, tls: Tls | None
) -> None:
    if tls is None or not (has_tokens or tls.client_ca):
        with pytest.raises(UsageError, match="other machines"):
            demand(address, has_tokens=has_tokens, tls=tls, insecure=False)
    else:
        found = demand(address, has_tokens=has_tokens, tls=tls, insecure=False)
        assert found is (Demand.CERTIFICATE if tls.client_ca else Demand.TOKEN)


@pytest.mark.parametrize("address", [Tcp("127.0.0.1", 1), Tcp("::1", 1), Unix(Path("s"))])
@pytest.mark.parametrize("tls", [None, TLS, MUTUAL])
def test_programs_on_this_machine_need_nothing(address: Address, tls: Tls | None) -> None:
    found = demand(address, has_tokens=True, tls=tls, insecure=False)

    assert found is Demand.NOTHING
    Access(address, demand=found).admit(None)
    Access(address, demand=found).admit_admin(None)


def test_who_says_insecure_lets_strangers_ask_and_nothing_more() -> None:
    found = demand(ANYWHERE, has_tokens=False, tls=None, insecure=True)
    access = Access(ANYWHERE, demand=found)

    access.admit(None)
    with pytest.raises(AccessDenied, match="admin's token"):
        access.admit_admin(None)


def test_an_ipv4_address_within_ipv6_is_as_local_as_itself() -> None:
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:10.0.0.1")


# Tokens.


def test_a_token_tells_who_it_is(file: Path) -> None:
    access = Credentials(tokens=file, insecure=True).access(ANYWHERE)

    access.admit(tokens.presented(f"Bearer {READER}"))
    access.admit_admin(tokens.presented(f"bearer  {ADMIN}"))
    with pytest.raises(AccessDenied, match="admin's token"):
        access.admit_admin(tokens.presented(f"Bearer {READER}"))


@given(header=st.text(max_size=60) | st.text("abcr~=", max_size=40).map("Bearer {}".format))
def test_whatever_else_is_presented_is_not_let_in(header: str) -> None:
    known = tokens.parse(LINES, what="tokens")

    digest = tokens.presented(header)

    found = tokens.find(known, digest)
    assert found is None or header.split()[-1] == READER


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "0 tokens"),
        ("# nobody\n", "0 tokens"),
        ("camera\n", "line 1 is not NAME TOKEN"),
        (f"\ncamera {READER} root\n", "line 2 is not NAME TOKEN"),
        (f"camera {READER} admin please\n", "line 1 is not NAME TOKEN"),
        ("camera secret\n", "the token of camera"),
        (f"camera {'ä' * 30}\n", "the token of camera"),
        (f"cam/era {READER}\n", "a name has"),
        (f"a {READER}\na {ADMIN}\n", "line 2: a or its token is there twice"),
        (f"a {READER}\nb {READER}\n", "line 2: b or its token is there twice"),
        ("".join(f"n{i} {i:032}\n" for i in range(257)), "257 tokens"),
    ],
)
def test_a_wrong_line_is_named_and_its_token_is_not_shown(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        tokens.parse(text, what="tokens")

    assert READER not in str(caught.value)
    assert "secret" not in caught.value.message


@given(st.text(max_size=200))
def test_lines_are_read_or_refused(text: str) -> None:
    try:
        found = tokens.parse(text, what="tokens")
    except ConfigError:
        return

    assert found


def test_a_token_file_that_others_can_read_is_refused(file: Path, tmp_path: Path) -> None:
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        TokenFile(file)
    assert caught.value.hint == f"chmod 600 {file}"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        TokenFile(tmp_path / "none")
    file.chmod(0o600)
    file.write_bytes(b"\xff" * 40)
    with pytest.raises(ConfigError, match="is not text"):
        TokenFile(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_token_file_of_another_user_is_refused(file: Path) -> None:
    os.chown(file, 12345, 12345)

    with pytest.raises(ConfigError, match="belongs to another user"):
        TokenFile(file)


def test_a_token_that_was_taken_out_is_not_let_in_any_more(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = TokenFile(file)
    camera = tokens.presented(f"Bearer {READER}")
    assert known.find(camera) is not None
    assert not known.refresh()

    storage.write(file, f"operator {ADMIN} admin\n".encode(), mode=0o600)
    assert known.refresh()
    assert known.find(camera) is None

    storage.write(file, LINES.encode() + b"typing error\n", mode=0o600)
    assert known.refresh()
    assert known.find(tokens.presented(f"Bearer {ADMIN}")) is None
    assert "no token is valid" in caplog.text

    storage.write(file, LINES.encode(), mode=0o600)
    assert known.refresh()
    assert known.find(camera) is not None
    assert READER not in caplog.text


# Over the wire.


def test_a_server_on_the_network_answers_only_to_its_tokens(tmp_path: Path, file: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path / "bundle")
    with serving(models, listen=[ANYWHERE], tokens=file, insecure=True) as server:
        for wrong in ([], [bearer("x" * 32)], ["Authorization: Basic eA=="]):
            with Wire(server) as wire:
                answer = wire.ask(get("/v2", *wrong))
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert wire.is_closed()
        with Wire(server) as wire:
            right = bearer(READER)
            for _ in range(2):
                got = output(wire.ask(infer(SAMPLES, headers=[right])))
            np.testing.assert_array_equal(got, bundles.directly(bundles.mlp(), SAMPLES))
            load_path = "/v2/repository/models/tiny/load"
            assert wire.ask(post(load_path, b"", right)).status == 403
            # Past the access rules: what is not installed cannot be loaded.
            assert wire.ask(post(load_path, b"", bearer(ADMIN))).status == 404


def test_a_body_of_a_stranger_is_not_received(file: Path) -> None:
    options: dict[str, Any] = {"tokens": file, "insecure": True}
    with serving(Models(), listen=[ANYWHERE], **options) as server, Wire(server) as wire:
        head = get("/v2", "Content-Length: 50000000", method="POST")

        assert wire.ask(head).status == 401
        assert wire.is_closed()


def test_a_connection_that_is_open_already_is_asked_again_after_a_change(file: Path) -> None:
    options: dict[str, Any] = {"tokens": file, "insecure": True, "limits": Limits(receive_s=0.2)}
    with serving(Models(), listen=[ANYWHERE], **options) as server, Wire(server) as wire:
        assert wire.ask(get("/v2", bearer(READER))).status == 200
        storage.write(file, f"operator {ADMIN} admin\n".encode(), mode=0o600)

        until(lambda: wire.ask(get("/v2", bearer(READER))).status == 401)
        assert wire.is_closed()


# TLS.


@pytest.mark.parametrize("loop", [new_event_loop, asyncio.new_event_loop])
def test_tls_carries_bodies_of_any_size(
    tmp_path: Path, file: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    authority = Authority(tmp_path)
    models = Models(measure=inline)
    load(models, tmp_path / "bundle")
    many = bundles.samples(3000)
    options: dict[str, Any] = {"tokens": file, "tls": authority.tls(), "loop": loop()}
    with serving(models, listen=[ANYWHERE], **options) as server:
        assert str(server.addresses[0]).startswith("https://")
        with Wire(server, tls=authority.client()) as wire:
            for samples in (SAMPLES, many, SAMPLES):
                got = output(wire.ask(infer(samples, headers=[bearer(READER)])))
                wanted = bundles.directly(bundles.mlp(), samples)
                np.testing.assert_allclose(got, wanted, atol=1e-5)
        with pytest.raises(ssl.SSLError), Wire(server, tls=ssl.create_default_context()):
            pass
        with Wire(server) as plain:
            plain.send(get("/v2"))
            assert plain.is_closed()


def test_a_tls_client_that_leaves_in_its_request_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    models = Models(measure=worker)
    load(models, tmp_path / "bundle")
    with serving(models, tls=authority.tls()) as server:
        for request in (infer(SAMPLES), infer(bundles.samples(2000))[:-10]):
            with Wire(server, tls=authority.client()) as wire:
                wire.send(request)
        with Wire(server, tls=authority.client()) as wire:
            np.testing.assert_array_equal(
                output(wire.ask(infer(SAMPLES))), bundles.directly(bundles.mlp(), SAMPLES)
            )
    assert not caplog.records


def test_only_holders_of_a_certificate_come_in_where_it_is_mutual(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path, "theirs")
    friend, stranger = ours.issue("camera"), theirs.issue("stranger")
    with serving(Models(), listen=[ANYWHERE], tls=ours.tls(clients=True)) as server:
        with Wire(server, tls=ours.client(friend)) as wire:
            assert wire.ask(get("/v2")).status == 200
            assert wire.ask(post("/v2/repository/models/tiny/load", b"")).status == 403
        for shown in (None, stranger):
            # With TLS 1.3 a client learns only when it reads that it was refused.
            with pytest.raises(OSError), Wire(server, tls=ours.client(shown)) as wire:  # noqa: PT011
                wire.ask(get("/v2"))


def test_a_certificate_that_is_renewed_is_used_for_new_connections(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.tls()
    limits = Limits(receive_s=0.1)
    with serving(Models(), listen=[Tcp(HOST, 0)], tls=files, limits=limits) as server:

        def serial() -> int:
            with Wire(server, tls=authority.client()) as wire:
                assert isinstance(wire.socket, ssl.SSLSocket)
                return int(wire.socket.getpeercert()["serialNumber"], 16)  # type: ignore[index,arg-type]

        before = serial()
        files.cert.write_text("half a certificate")
        assert serial() == before
        authority.issue("server")
        until(lambda: serial() != before)


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    files = Authority(tmp_path).tls(clients=True)
    assert files.client_ca is not None
    context(files)

    files.key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"server\.key can be read by others"):
        context(files)
    files.key.chmod(0o600)
    files.client_ca.write_text("nothing")
    with pytest.raises(ConfigError, match=r"authority\.crt holds no certificate"):
        context(files)
    files.cert.write_text("nothing")
    with pytest.raises(ConfigError, match="are not a certificate and its unencrypted"):
        context(files)
    files.cert.unlink()
    with pytest.raises(ConfigError, match=r"server\.crt cannot be read"):
        context(files)


# DNS rebinding.


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8500", "localhost.evil.example"])
def test_a_page_that_rebinds_its_name_to_this_machine_gets_nothing(host: str) -> None:
    with serving(Models(measure=inline)) as server, Wire(server) as wire:
        assert wire.ask(f"GET /v2 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 403


def test_a_page_from_elsewhere_gets_nothing_on_any_address(file: Path) -> None:
    options: dict[str, Any] = {"tokens": file, "insecure": True}
    with serving(Models(), listen=[ANYWHERE], **options) as server, Wire(server) as wire:
        request = get("/v2", bearer(READER), "Origin: https://evil.example")

        assert wire.ask(request).status == 403


def test_a_server_names_what_it_would_need(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nobody would have to prove") as caught:
        Server(Models(), listen=[Tcp("127.0.0.1", 0), ANYWHERE])
    assert "--token-file" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="nobody would have to prove"):
        Server(Models(), listen=[Tcp("127.0.0.1", 0)], grpc=ANYWHERE)


def test_tokens_in_the_clear_are_refused(file: Path) -> None:
    with pytest.raises(UsageError, match="in the clear") as caught:
        Server(Models(), listen=[ANYWHERE], tokens=file)
    assert "--tls-cert" in (caught.value.hint or "")
