"""gRPC's door: who may call, and what happens where it cannot be opened."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from edgekit import storage
from edgekit.errors import ServingError, UsageError
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.grpc.service import client_of
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.peer import STRANGER
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime.authority import Authority
from tests.runtime.served import HOST, inline, load, serving

HERE = Tcp(HOST, 0)
READER, ADMIN = "r" * 32, "a" * 32
SAMPLES = bundles.samples(1)
EXPECTED = bundles.directly(bundles.mlp(), SAMPLES)


def tensor() -> Any:
    made = triton.InferInput("x", list(SAMPLES.shape), "FP32")
    made.set_data_from_numpy(SAMPLES)
    return made


def test_calls_from_other_machines_need_a_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    storage.write(file, f"camera {READER}\noperator {ADMIN} admin\n".encode(), mode=0o600)
    models = Models(measure=inline)
    load(models, tmp_path / "bundle")
    options: dict[str, Any] = {"tokens": file, "insecure": True, "grpc": Tcp("0.0.0.0", 0)}
    with serving(models, **options) as server:
        assert server.grpc_address is not None
        address = f"{HOST}:{server.grpc_address.port}"
        with triton.InferenceServerClient(address) as client:
            for headers in (None, {"authorization": "Bearer wrong"}):
                with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                    client.is_server_live(headers=headers)
            reader = {"authorization": f"Bearer {READER}"}
            result = client.infer("tiny", [tensor()], headers=reader)
            np.testing.assert_array_equal(result.as_numpy("y"), EXPECTED)
            with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
                client.load_model("tiny", headers=reader)
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                client.load_model("none", headers={"authorization": f"Bearer {ADMIN}"})


def test_calls_over_mutual_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("camera")
    root = authority.certificate.read_bytes()
    options: dict[str, Any] = {"tls": authority.tls(clients=True), "grpc": Tcp("0.0.0.0", 0)}
    with serving(Models(), **options) as server:
        assert server.grpc_address is not None
        address = f"localhost:{server.grpc_address.port}"
        known = grpc.ssl_channel_credentials(root, key.read_bytes(), cert.read_bytes())
        with triton.InferenceServerClient(address, creds=known, ssl=True) as client:
            assert client.is_server_live()
        unknown = grpc.ssl_channel_credentials(root)
        with (
            triton.InferenceServerClient(address, creds=unknown, ssl=True) as client,
            pytest.raises(InferenceServerException, match="UNAVAILABLE"),
        ):
            client.is_server_live(client_timeout=5)


def test_an_address_in_use_is_named() -> None:
    with serving(Models(), grpc=HERE) as first:
        assert first.grpc_address is not None
        second = Server(Models(), listen=[HERE], grpc=first.grpc_address)
        with pytest.raises(ServingError, match=f"{first.grpc_address.port} for gRPC"):
            asyncio.run(second.start())


def test_without_grpc_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgekit_runtime.serving.grpc.server", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)

    with pytest.raises(UsageError, match="gRPC is not installed") as caught:
        Server(Models(), listen=[HERE], grpc=HERE)
    assert "edgekit-ml[grpc]" in (caught.value.hint or "")


@pytest.mark.parametrize("end", ["unix:", "unknown", "ipv4:10.0.0.1:50000", "ipv4:127.0.0.1", ""])
def test_who_is_not_on_this_machine_shares_no_memory(end: str) -> None:
    assert client_of(end, Tcp("0.0.0.0", 8501)) == STRANGER
