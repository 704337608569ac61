"""The repository: what is installed can be loaded and unloaded, and nothing else can."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edgekit.errors import BundleError, NotServed, UntrustedError, UsageError
from edgekit.signing import SigningKey
from edgekit_runtime.opening import Opened, open_trusted
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.repository import UNLOADED, Entry, Installed, Source
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime.served import HOST, Answer, Wire, get, infer, inline, output, port, post, serving

SAMPLES = bundles.samples(1)
KEY = SigningKey.generate()


def source(path: Path, cache: Path) -> Source:
    """An installed bundle of a model `tiny`, as `edgekit run` opens one."""

    def opened() -> Opened:
        return open_trusted(path, trusted=[KEY.public], insecure=False, cache=cache)

    version = path.name.removeprefix("tiny-").removesuffix(f"-{bundles.PROFILE.name}.edge")
    return Source("tiny", version, opened)


class Board:
    """A server with a repository, its bundles, and a client."""

    def __init__(self, folder: Path, versions: Sequence[str] = ("1.0.0",)) -> None:
        self.paths = [bundles.write(folder, version=v, key=KEY, seed=i)
                      for i, v in enumerate(versions)]  # fmt: skip
        self.cache = folder / "cache"
        self.models = Models(measure=inline)
        self.sources = [source(path, self.cache) for path in self.paths]
        self.repository = Installed(self.models, lambda: self.sources)
        self.repository.load("tiny")

    def index(self) -> list[Entry]:
        return self.repository.index()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path)
    yield made
    made.models.close()


def test_an_unloaded_model_stays_listed_and_can_be_loaded_again(board: Board) -> None:
    first = board.models.find("tiny")
    assert board.index() == [Entry(name="tiny", version="1.0.0", state="READY")]

    board.repository.unload("tiny")

    assert first.wait_closed(0)
    assert board.models.served() == []
    assert board.index() == [
        Entry(name="tiny", version="1.0.0", state="UNAVAILABLE", reason=UNLOADED)
    ]
    with pytest.raises(NotServed, match="tiny is not served"):
        board.repository.unload("tiny")

    board.repository.load("tiny")

    assert board.models.find("tiny").verified_by == KEY.public.id
    assert board.index() == [Entry(name="tiny", version="1.0.0", state="READY")]


def test_what_is_not_installed_is_neither_loaded_nor_unloaded(board: Board) -> None:
    other = board.models.load(bundles.unpacked(board.cache, name="other"), verified_by="a key")
    board.models.activate(other)

    for change in (board.repository.load, board.repository.unload):
        with pytest.raises(NotServed, match="no bundle of 'other' is installed") as raised:
            change("other")
        assert raised.value.hint == "installed: tiny"
    assert board.models.find("other") is other
    assert [entry.name for entry in board.index()] == ["other", "tiny"]


def test_a_bundle_that_was_changed_since_is_not_loaded_and_the_old_one_serves_on(
    board: Board,
) -> None:
    before = board.models.find("tiny")
    raw = bytearray(board.paths[0].read_bytes())
    raw[len(raw) // 2] ^= 1
    board.paths[0].write_bytes(raw)
    shutil.rmtree(board.cache)

    with pytest.raises(BundleError):
        board.repository.load("tiny")

    assert board.models.find("tiny") is before
    assert board.index()[0].state == "READY"
    board.repository.unload("tiny")
    with pytest.raises(BundleError):
        board.repository.load("tiny")
    (entry,) = board.index()
    assert entry.state == "UNAVAILABLE"
    assert entry.reason not in ("", UNLOADED)


def test_a_bundle_that_nobody_trusted_signed_is_not_loaded(board: Board, tmp_path: Path) -> None:
    bundles.write(tmp_path, key=SigningKey.generate(), seed=5)

    with pytest.raises(UntrustedError):
        board.repository.load("tiny")
    assert board.models.find("tiny").verified_by == KEY.public.id


def test_a_newer_bundle_in_the_same_place_takes_over(board: Board, tmp_path: Path) -> None:
    old = board.models.find("tiny")
    bundles.write(tmp_path, version="2.0.0", key=KEY, seed=5).rename(board.paths[0])

    board.repository.load("tiny")

    assert [served.version for served in board.models.served()] == ["2.0.0"]
    assert old.wait_closed(10)
    assert [(entry.version, entry.state) for entry in board.index()] == [
        ("1.0.0", "UNAVAILABLE"), ("2.0.0", "READY"),
    ]  # fmt: skip


def test_an_update_that_comes_while_a_model_is_loaded_wins(board: Board, tmp_path: Path) -> None:
    (old,) = board.sources
    newer = source(bundles.write(tmp_path, version="2.0.0", key=KEY, seed=5), board.cache)

    def updated_meanwhile() -> Opened:
        board.sources = [newer]
        return old.open()

    board.repository.unload("tiny")
    board.sources = [old._replace(open=updated_meanwhile)]
    with pytest.raises(UsageError, match=r"tiny 1\.0\.0 was replaced"):
        board.repository.load("tiny")
    assert board.models.served() == []

    board.repository.load("tiny")
    assert [served.version for served in board.models.served()] == ["2.0.0"]


def test_another_model_in_the_same_place_is_refused(board: Board, tmp_path: Path) -> None:
    bundles.write(tmp_path, name="other", key=KEY).rename(board.paths[0])

    with pytest.raises(UsageError, match="holds other by now"):
        board.repository.load("tiny")
    assert [served.name for served in board.models.served()] == ["tiny"]


def test_a_model_that_serves_is_opened_and_checked_but_not_loaded_twice(board: Board) -> None:
    before = board.models.find("tiny")

    board.repository.load("tiny")

    assert board.models.find("tiny") is before


def test_all_installed_versions_of_a_model_are_loaded(tmp_path: Path) -> None:
    board = Board(tmp_path, versions=("1.0.0", "1.1.0"))
    board.repository.unload("tiny")
    assert board.models.served() == []

    board.repository.load("tiny")

    assert [served.version for served in board.models.served()] == ["1.0.0", "1.1.0"]
    board.models.close()


def test_one_of_several_versions_is_not_replaced_by_another_bundle_of_its_version(
    tmp_path: Path,
) -> None:
    board = Board(tmp_path, versions=("1.0.0", "1.1.0"))
    before = board.models.served()
    board.paths[1].unlink()
    bundles.write(tmp_path, version="1.1.0", key=KEY, seed=7)

    with pytest.raises(UsageError, match=r"tiny 1\.1\.0 is given twice"):
        board.repository.load("tiny")

    assert board.models.served() == before
    assert [entry.state for entry in board.index()] == ["READY", "READY"]
    board.models.close()


# Over HTTP.


@pytest.fixture
def server(board: Board) -> Iterator[Server]:
    with serving(board.models, repository=board.repository) as running:
        yield running


def change(what: str, *, name: str = "tiny", **parameters: Any) -> bytes:
    body = json.dumps({"parameters": parameters}).encode() if parameters else b""
    return post(f"/v2/repository/models/{name}/{what}", body)


def ask(server: Server, request: bytes) -> Answer:
    with Wire(server) as wire:
        return wire.ask(request)


def test_tritonclient_unloads_and_loads(server: Server, board: Board) -> None:
    with triton.InferenceServerClient(f"{HOST}:{port(server)}") as client:
        client.unload_model("tiny")
        assert not client.is_model_ready("tiny")
        assert client.get_model_repository_index() == [
            {"name": "tiny", "version": "1.0.0", "state": "UNAVAILABLE", "reason": UNLOADED}
        ]
        client.load_model("tiny")
        assert client.is_model_ready("tiny")
        with pytest.raises(InferenceServerException, match="no bundle of 'other' is installed"):
            client.load_model("other")
        with pytest.raises(InferenceServerException, match="parameter 'config' is not taken"):
            client.load_model("tiny", config="{}")


@pytest.mark.parametrize("parameter", ["config", "file:1/model.onnx"])
def test_nothing_can_be_put_in_a_bundles_place(server: Server, parameter: str) -> None:
    answer = ask(server, change("load", **{parameter: "e30="}))

    assert (answer.status, f"'{parameter}'" in answer.error) == (400, True)
    assert ask(server, change("unload", unload_dependents=True)).status == 200


def test_only_what_is_ready_is_listed_if_asked_so(server: Server, board: Board) -> None:
    board.repository.unload("tiny")

    assert len(ask(server, post("/v2/repository/index", b"")).json) == 1
    assert ask(server, post("/v2/repository/index", b'{"ready": true}')).json == []
    assert ask(server, post("/v2/repository/index", b'{"ready": 3}')).status == 400
    assert ask(server, post("/v2/repository/index", b"[")).status == 400


def test_the_reason_why_a_model_was_not_loaded_is_told(server: Server, board: Board) -> None:
    board.paths[0].write_bytes(b"no bundle")

    answer = ask(server, change("load"))

    assert answer.status == 409
    assert str(board.paths[0]) in answer.error
    np_output = output(ask(server, infer(SAMPLES)))
    assert np_output.shape == (1, bundles.CLASSES)


def test_requests_are_answered_while_a_model_is_loaded(server: Server, board: Board) -> None:
    opening, go_on = threading.Event(), threading.Event()
    (only,) = board.sources

    def slowly() -> Opened:
        opening.set()
        assert go_on.wait(60)
        return only.open()

    board.sources = [only._replace(open=slowly)]
    with Wire(server) as loading:
        loading.send(change("load"))
        assert opening.wait(60)
        assert output(ask(server, infer(SAMPLES))).shape == (1, bundles.CLASSES)
        go_on.set()
        assert loading.answer().status == 200


def test_a_client_that_leaves_while_a_model_is_unloaded_changes_nothing(
    server: Server, board: Board
) -> None:
    with Wire(server) as wire:
        wire.send(change("unload"))
    while board.models.served():
        threading.Event().wait(0.001)

    assert ask(server, change("load")).status == 200
    assert output(ask(server, infer(SAMPLES))).shape == (1, bundles.CLASSES)


def test_a_server_without_a_repository_lists_and_changes_nothing(tmp_path: Path) -> None:
    models = Models(measure=inline)
    models.activate(models.load(bundles.unpacked(tmp_path), verified_by="a key"))
    with serving(models) as server:
        assert ask(server, post("/v2/repository/index", b"")).json[0]["state"] == "READY"
        assert ask(server, change("unload")).status == 404
        assert ask(server, get("/v2/models/tiny/ready")).status == 200


def test_another_machine_may_list_and_change_nothing(board: Board) -> None:
    with serving(
        board.models, repository=board.repository, listen=[Tcp("0.0.0.0", 0)], insecure=True
    ) as server:
        answer = ask(server, change("unload"))

        assert (answer.status, "admin" in answer.error) == (403, True)
        assert ask(server, post("/v2/repository/index", b"")).status == 200
