"""Programs that share memory with the server: a real bell, real engines, the real client."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import (
    DeadlineMissed,
    EngineError,
    NotServed,
    Overloaded,
    RequestError,
    ServingError,
    Unavailable,
    UsageError,
    WorkerLost,
)
from edgekit_runtime.client import AnsweredBy, Changed, Client, Gone, Slot
from edgekit_runtime.client.look import LONGEST_REST, Look
from edgekit_runtime.serving.bell import BellLimits
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.plan import Place
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.settings import Settings
from tests import bundles
from tests.runtime import several
from tests.runtime.bells import ringing
from tests.runtime.served import (
    Wire,
    infer,
    inline,
    load,
    output,
    planned,
    serving,
    until,
    worker,
)

SHAPE = (bundles.FEATURES,)


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Path]:
    """The socket of a server with the model `tiny`."""
    models = Models(measure=inline)
    load(models, tmp_path)
    with ringing(models, tmp_path / "bell"):
        yield tmp_path / "bell"


@pytest.mark.parametrize("place", ["loop", "thread"])
@pytest.mark.parametrize("rows", [1, 32])
def test_a_program_gets_what_the_engine_gives(tmp_path: Path, place: Place, rows: int) -> None:
    models = Models(measure=planned(place, 10))
    load(models, tmp_path)
    expected = bundles.directly(bundles.mlp(), inputs := bundles.samples(rows))

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        model = client.open("tiny", rows=rows)
        for scale in (0, 1):
            model.inputs["x"][:] = scale * inputs
            outputs = model.run()

    assert np.allclose(outputs["y"], expected, atol=1e-5)
    assert model.answered_by == AnsweredBy("1.0.0", "float")


@pytest.mark.parametrize("workers", ["loop", "thread", "process"])
def test_tensors_of_every_kind_come_back_from_every_worker(tmp_path: Path, workers: Place) -> None:
    models = Models(Settings(workers=workers))
    models.activate(models.load(several.mixed(tmp_path), verified_by="a key"))
    models.activate(models.load(several.scalars(tmp_path), verified_by="a key"))
    a, b = np.ones((2, 4), np.float32), np.array([[1, 2], [3, 4]], np.int32)

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        mixed = client.infer("mixed", {"a": a, "b": b})
        scalars = client.infer(
            "scalars", {"gain": np.float32(2), "x": np.array([1, 2, 3], np.float32)}
        )

    assert mixed["scores"].tolist() == [[4] * 4, [8] * 4]
    assert mixed["half"].dtype == np.float16
    assert mixed["twice"].tolist() == [[2, 4], [6, 8]]
    assert scalars["y"].tolist() == [2, 4, 6]
    assert scalars["total"] == 12


def test_an_answer_of_convenience_has_memory_of_its_own(bell: Path) -> None:
    with Client(bell) as client:
        first = client.infer("tiny", {"x": bundles.samples(2, seed=1)})["y"]
        kept = first.copy()
        client.infer("tiny", {"x": bundles.samples(2, seed=2)})

    assert (first == kept).all()


def test_several_requests_of_one_program_are_on_their_way_at_a_time(bell: Path) -> None:
    inputs = bundles.samples(4)
    expected = bundles.directly(bundles.mlp(), inputs)

    with Client(bell) as client:
        slots = client.open("tiny", slots=4).slots
        for number, slot in enumerate(slots):
            slot.inputs["x"][:] = inputs[number]
            slot.start()
        found = [slots[number].wait()["y"][0] for number in (2, 0, 3, 1)]

    assert np.allclose(found, expected[[2, 0, 3, 1]], atol=1e-5)


def test_a_slot_is_for_one_request_at_a_time(bell: Path) -> None:
    with Client(bell) as client:
        slot = client.open("tiny").slots[0]

        with pytest.raises(UsageError, match="was not started"):
            slot.wait()
        slot.start()
        with pytest.raises(UsageError, match="wait for its answer first"):
            slot.start()
        slot.wait()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "big"}, NotServed, "big is not served here"),
        ({"version": "9.9.9"}, NotServed, "tiny 9.9.9 is not served here"),
        ({"rows": 0}, RequestError, "rows"),
        ({"rows": 1 << 19, "slots": 16}, RequestError, "a program may share"),
        ({"slots": 17}, RequestError, "slots"),
        ({"shapes": {"z": (1,)}}, RequestError, "no input or output 'z'"),
        ({"shapes": {"x": (1, 5)}}, RequestError, r"'x' must have shape \[-1, 16\]"),
    ],
)
def test_a_model_that_cannot_be_opened_says_why(
    bell: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with Client(bell) as client, pytest.raises(error, match=message):
        client.open(**{"name": "tiny", **options})


def test_a_variant_that_the_model_does_not_have_is_refused(bell: Path) -> None:
    with Client(bell) as client, pytest.raises(NotServed, match="no variant 'int8'"):
        client.open("tiny", variant="int8").run()


def test_a_pinned_variant_answers(tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path, beside={"other": bundles.mlp(seed=7)})
    expected = bundles.directly(bundles.mlp(seed=7), inputs := bundles.samples(1))

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        model = client.open("tiny", variant="other")
        model.inputs["x"][:] = inputs
        outputs = model.run()

    assert np.allclose(outputs["y"], expected, atol=1e-5)
    assert model.answered_by == AnsweredBy("1.0.0", "other")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'x' has shape|'x' is missing"),
        ({"x": np.zeros((1, 5), np.float32)}, "'x' must have shape"),
        ({"x": np.zeros((1, 16), np.float64)}, "'x' must be float32"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    bell: Path, inputs: dict[str, np.ndarray], message: str
) -> None:
    with Client(bell) as client, pytest.raises(RequestError, match=message):
        client.infer("tiny", inputs)


def test_a_request_that_is_late_says_so(tmp_path: Path) -> None:
    models = Models(measure=worker)
    load(models, tmp_path)

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        model = client.open("tiny")
        with pytest.raises(DeadlineMissed):
            model.run(timeout_s=1e-6)
        model.inputs["x"][:] = bundles.samples(1)
        after = model.run(timeout_s=60)["y"].copy()
        model.inputs["x"][:] = 0
        zero = model.run()["y"].copy()

    assert np.allclose(after, bundles.directly(bundles.mlp(), bundles.samples(1)), atol=1e-5)
    assert not np.allclose(after, zero)


def test_more_than_the_queue_holds_is_told_when_to_come_again(tmp_path: Path) -> None:
    models = Models(Settings(queue_limit=1), measure=worker)
    load(models, tmp_path, model=bundles.convnet(size=96))

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        slots = client.open("tiny", slots=8).slots
        for slot in slots:
            slot.start()
        waits = [retry_after_s(slot) for slot in slots]

    assert 0 < len([wait for wait in waits if wait > 0]) < len(slots)


def retry_after_s(slot: Slot) -> float:
    """What a program that was turned away is told; 0 for one that was answered."""
    try:
        slot.wait()
    except Overloaded as e:
        return e.retry_after_s
    return 0


@pytest.mark.parametrize("place", ["loop", "thread"])
def test_a_new_version_answers_the_next_request(tmp_path: Path, place: Place) -> None:
    models = Models(measure=planned(place, 10))
    load(models, tmp_path)

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        model = client.open("tiny")
        pinned = client.open("tiny", version="1.0.0")
        model.inputs["x"][:] = inputs = bundles.samples(1)
        before = model.run()["y"].copy()
        new = bundles.unpacked(tmp_path / "new", version="2.0.0", seed=5)
        models.activate(models.load(new, verified_by="a key"), replace=True)
        after = model.run()["y"].copy()
        with pytest.raises(NotServed):
            pinned.run()

    assert not np.allclose(before, after)
    assert np.allclose(after, bundles.directly(bundles.mlp(seed=5), inputs), atol=1e-5)
    assert model.answered_by == AnsweredBy("2.0.0", "float")


def test_a_new_version_with_other_tensors_is_to_be_opened_again(tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        model = client.open("tiny")
        client.infer("tiny", {"x": bundles.samples(1)})
        wider = bundles.mlp((bundles.FEATURES, 8, 9))
        new = bundles.unpacked(tmp_path / "new", version="2.0.0", model=wider)
        models.activate(models.load(new, verified_by="a key"), replace=True)

        with pytest.raises(Changed, match=r"2\.0\.0 has other inputs or outputs"):
            model.run()
        assert client.infer("tiny", {"x": bundles.samples(1)})["y"].shape == (1, 9)


def test_a_server_that_ended_is_gone_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "bell"
    models = Models(measure=inline)
    load(models, tmp_path / "first")
    with Client(path) as client:
        with pytest.raises(Gone, match="no server answers"):
            client.open("tiny")
        with ringing(models, path):
            model = client.open("tiny")
            client.infer("tiny", {"x": bundles.samples(1)})
        with pytest.raises(Gone):
            model.run()
        with pytest.raises(Gone):
            client.infer("tiny", {"x": bundles.samples(1)})
        models = Models(measure=inline)
        load(models, tmp_path / "second")
        with ringing(models, path):
            assert client.infer("tiny", {"x": bundles.samples(1)})["y"].shape == (1, 4)


def x_to_y(*shape: int) -> tuple[list[several.Named], list[several.Named]]:
    """Input `x` and output `y`, both FP32 of this shape."""
    return [("x", "FP32", shape)], [("y", "FP32", shape)]


def resizable(folder: Path) -> Models:
    """Input `x` [n, m], output `y` of the same shape."""
    models = Models(measure=inline)
    golden = {"x": np.ones((several.ROWS, 5), np.float32)}
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    bundle = several.write(folder, "any", nodes, [], *x_to_y(-1, -1), golden)
    models.activate(models.load(bundle, verified_by="a key"))
    return models


def test_an_output_whose_size_the_model_decides_is_told_with_the_answer(tmp_path: Path) -> None:
    with ringing(resizable(tmp_path), tmp_path / "bell"), Client(tmp_path / "bell") as client:
        with pytest.raises(RequestError, match=r"'x' has shape \[-1, -1\]"):
            client.open("any")
        with pytest.raises(RequestError, match=r"'y' has shape \[-1, -1\], of which the model"):
            client.open("any", shapes={"x": (2, 5)})
        model = client.open("any", shapes={"x": (2, 5), "y": (2, 9)})
        small = client.open("any", shapes={"x": (2, 5), "y": (2, 3)})
        for _ in range(2):
            model.inputs["x"][:] = np.arange(10).reshape(2, 5)
            found = model.run()["y"]
            assert found.tolist() == model.inputs["x"].tolist()
        with pytest.raises(RequestError, match=r"'y' has shape \[2, 5\], 40 bytes; .* has 24"):
            small.run()


KILLED = """
import sys
from edgekit_runtime.client import Client
with Client(sys.argv[1]) as client:
    slots = client.open("tiny", slots=8).slots
    print("rings", flush=True)
    while True:
        for slot in slots:
            slot.start()
        for slot in slots:
            slot.wait()
"""


@pytest.mark.parametrize("place", ["loop", "thread"])
def test_of_a_killed_program_nothing_stays(tmp_path: Path, place: Place) -> None:
    models = Models(measure=planned(place, 1000))
    load(models, tmp_path, model=bundles.convnet(size=96))

    with ringing(models, tmp_path / "bell") as hung:
        held = descriptors()
        for _ in range(2):
            command = [sys.executable, "-c", KILLED, str(tmp_path / "bell")]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.readline()
                mapped = shared_mappings()
                process.send_signal(signal.SIGKILL)
            assert mapped > 0
        until(lambda: hung.bell.callers == 0)
        until(lambda: shared_mappings() == 0)
        assert descriptors() == held
        with Client(tmp_path / "bell") as client:
            client.open("tiny").run()


def test_fifty_opens_and_closes_leave_nothing(bell: Path) -> None:
    with Client(bell) as client:
        client.open("tiny").run()
        client.close()
        until(lambda: shared_mappings() == 0)
        held = descriptors()
        for _ in range(50):
            with client.open("tiny", slots=2) as model:
                model.run()
            del model
        client.close()
        until(lambda: shared_mappings() == 0)
        assert descriptors() == held


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def shared_mappings() -> int:
    """Memory files of programs that are mapped into this process."""
    return Path("/proc/self/maps").read_text().count("memfd:edgekit")


def test_a_server_takes_so_many_programs_and_no_more(tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    limits = BellLimits(callers=2)

    with ringing(models, tmp_path / "bell", limits=limits) as hung, Client(hung.path) as client:
        first = client.open("tiny")
        client.open("tiny")
        with pytest.raises(Overloaded, match="2 models are open"):
            client.open("tiny")
        first.close()
        until(lambda: hung.bell.callers == 1)
        client.open("tiny").run()


def test_only_who_may_write_to_the_socket_may_ask(bell: Path) -> None:
    assert stat.S_IMODE(bell.stat().st_mode) == 0o660


def test_the_socket_of_a_server_that_is_gone_is_replaced_and_of_one_that_answers_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bell"
    with ringing(Models(), path), ExitStack() as stack, pytest.raises(ServingError, match="in use"):
        stack.enter_context(ringing(Models(), path))
    assert not path.exists()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.bind(str(path))
    with ringing(Models(), path):
        assert path.is_socket()
    path.write_text("a file")
    with pytest.raises(ServingError, match="not a socket"), ringing(Models(), path):
        pass


def test_programs_and_connections_ask_one_server(tmp_path: Path) -> None:
    models = Models(measure=inline)
    load(models, tmp_path)
    inputs = bundles.samples(1)

    path = tmp_path / "bell"

    with serving(models, bell=path) as server, Wire(server) as wire, Client(path) as client:
        ours = client.infer("tiny", {"x": inputs})["y"]
        theirs = output(wire.ask(infer(inputs)))

    assert (ours == theirs).all()
    assert not path.exists()


def test_requests_on_their_way_are_answered_before_the_server_ends(tmp_path: Path) -> None:
    models = Models(measure=worker)
    load(models, tmp_path, model=bundles.convnet(size=96))

    with Client(tmp_path / "bell") as client:
        with ringing(models, tmp_path / "bell") as hung:
            slots = client.open("tiny", slots=8).slots
            for slot in slots:
                slot.start()
            (caller,) = hung.bell._callers
            served = models.find("tiny")

            def taken() -> int:
                waiting = sum(slot._job is not None for slot in caller._slots)
                return waiting + served.snapshot().succeeded

            until(lambda: taken() >= len(slots))
            hung.loop.call_soon_threadsafe(hung.bell.retire)
            for slot in slots:
                assert slot.wait()["y"].shape == (1, 32)
        with pytest.raises(Unavailable):
            slots[0].run()


def test_an_engine_that_refuses_is_quoted(tmp_path: Path) -> None:
    models = Models(measure=inline)
    golden = {"x": np.ones((several.ROWS, 4), np.float32)}
    nodes = [
        helper.make_node("Cast", ["x"], ["at"], to=7),
        helper.make_node("GatherElements", ["x", "at"], ["y"], axis=1),
    ]
    bundle = several.write(tmp_path, "pick", nodes, [], *x_to_y(-1, 4), golden)
    models.activate(models.load(bundle, verified_by="a key"))

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        model = client.open("pick")
        model.inputs["x"][:] = 9
        with pytest.raises(EngineError, match="GatherElements"):
            model.run()
        model.inputs["x"][:] = 2
        assert model.run()["y"].tolist() == [[2] * 4]

        assert models.find("pick").snapshot().errors == {"engine": 1}


def test_a_slot_is_not_used_again_while_a_hung_engine_may_write_into_it(tmp_path: Path) -> None:
    models = Models(Settings(run_limit_s=0.02, workers="thread"), measure=worker)
    turns = numpy_helper.from_array(np.array(60_000, np.int64), "turns")
    truth = numpy_helper.from_array(np.array(True), "truth")
    half = numpy_helper.from_array(np.array([0.5], np.float32), "half")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still_on"]),
            helper.make_node("Mul", ["x_in", "half"], ["x_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_in", TensorProto.FLOAT, ["n", 4]),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, ["n", 4]),
        ],
    )
    nodes = [helper.make_node("Loop", ["turns", "truth", "x"], ["y"], body=body)]
    golden = {"x": np.ones((several.ROWS, 4), np.float32)}
    constants = [turns, truth, half]
    bundle = several.write(tmp_path, "slow", nodes, constants, *x_to_y(-1, 4), golden)
    models.activate(models.load(bundle, verified_by="a key"))

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        model = client.open("slow")
        with pytest.raises(WorkerLost, match="hung"):
            model.run()
        with pytest.raises(Unavailable, match="may still write"):
            model.run()


def test_what_programs_ask_is_counted(tmp_path: Path) -> None:
    models = Models(measure=inline)
    served = load(models, tmp_path)

    with ringing(models, tmp_path / "bell"), Client(tmp_path / "bell") as client:
        model = client.open("tiny", rows=4)
        for timeout_s in (None, 60.0, 0.5e-3):
            with suppress(DeadlineMissed):
                model.run(timeout_s=timeout_s)
        until(lambda: done(served) == 3)

        assert served.snapshot().inferences >= 8


def done(served: Served) -> int:
    """Requests that were answered, refused or failed."""
    found = served.snapshot()
    return found.succeeded + sum(found.errors.values()) + sum(found.refusals.values())


@given(st.lists(st.booleans(), max_size=300))
def test_a_program_looks_less_often_while_it_is_in_vain(comes: list[bool]) -> None:
    look = Look(100)
    in_vain, rests = 0, 0
    for found in comes:
        if not look.is_due():
            rests += 1
            assert in_vain > 0
        elif found:
            look.found()
            in_vain = rests = 0
        else:
            in_vain, rests = in_vain + 1, 0
            look.missed()
        assert rests <= min(2 ** max(0, in_vain - 1), LONGEST_REST)


def test_a_program_that_may_not_look_never_does() -> None:
    assert not Look(0).is_due()


def test_the_client_imports_no_engine_and_no_server() -> None:
    code = "import sys, edgekit_runtime.client; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    imported = set(run.stdout.decode().split())

    assert "edgekit_runtime.client" in imported
    assert not imported & {"onnxruntime", "asyncio", "uvloop", "edgekit_runtime.serving"}
