"""A file that was made to do harm is refused, quickly and in little memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import ModelError
from edgekit_converters import source
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.sources import wire
from tests.converters.building import convnet, write_model

HONEST = convnet().SerializeToString()
MEMORY_BYTES = 1 << 30


@contextmanager
def little_memory() -> Iterator[None]:
    """Room for a gigabyte more than the process has: what asks for more fails."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(path: Path, message: str) -> None:
    with little_memory(), pytest.raises(ModelError, match=message) as error:
        source.read(path)
    assert str(path) in error.value.message


def part(field: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    size, length = len(content), b""
    while True:
        length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        size >>= 7
        if not size:
            return bytes([field << 3 | 2]) + length + content


GRAPH, NODE, ATTRIBUTE, SUBGRAPH = 7, 1, 5, 6


def write_bytes(folder: Path, content: bytes) -> Path:
    path = folder / "hostile.onnx"
    path.write_bytes(content)
    return path


def test_millions_of_nodes_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    refused(
        write_bytes(tmp_path, part(GRAPH, part(NODE, b"") * 3_000_000)), "more than 100000 nodes"
    )


def test_millions_of_attributes_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    node = part(NODE, part(ATTRIBUTE, b"") * 1_500_000)

    refused(write_bytes(tmp_path, part(GRAPH, node)), "more than 1000000 parts")


@pytest.mark.parametrize("depth", [30, 3000])
def test_graphs_nested_thousands_deep_are_refused(depth: int, tmp_path: Path) -> None:
    nested = b""
    for _ in range(depth):
        nested = part(SUBGRAPH, part(NODE, part(ATTRIBUTE, nested)))

    refused(write_bytes(tmp_path, part(GRAPH, part(NODE, part(ATTRIBUTE, nested)))), "deep")


def test_a_file_that_ends_inside_a_field_is_refused(tmp_path: Path) -> None:
    refused(write_bytes(tmp_path, HONEST[:-1]), "cut off")


def test_a_real_model_is_counted_right(tmp_path: Path) -> None:
    path = tmp_path / "lite0.onnx"
    write_lite0(path)

    census = wire.require_bounded(path)

    assert census.nodes == len(onnx.load(path).graph.node)
    assert census.structure_bytes < 100_000
    assert isinstance(source.read(path), source.OnnxSource)


@settings(max_examples=100, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(HONEST) - 1), st.integers(0, 255)), min_size=1, max_size=6
    ),
    cut=st.integers(0, len(HONEST)),
)
def test_any_damage_is_read_or_refused(
    changes: list[tuple[int, int]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(HONEST)
    for position, value in changes:
        damaged[position] = value
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(damaged[:cut] if cut % 3 == 0 else damaged)

    with little_memory(), suppress(ModelError):
        source.read(path)


STRUCTURE = 600  # bytes at either end of the file that hold the graph and not the weights


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 2 * STRUCTURE - 1), value=st.integers(0, 255))
def test_any_damage_to_the_graph_is_read_or_refused(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(HONEST)
    damaged[position if position < STRUCTURE else position - 2 * STRUCTURE] = value
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(damaged)

    with little_memory(), suppress(ModelError):
        source.read(path)


def in_an_attribute(model: onnx.ModelProto) -> None:
    value = TensorProto(dims=[1 << 31, 4], data_type=TensorProto.FLOAT, raw_data=b"\0" * 16)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["made"]))
    model.graph.node[0].attribute.append(helper.make_attribute("value", value))


def in_a_sparse_initialiser(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, places, [1 << 20, 1 << 20])
    )


@pytest.mark.parametrize("change", [in_an_attribute, in_a_sparse_initialiser])
def test_a_huge_claim_is_refused_wherever_it_hides(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = convnet()
    change(model)

    refused(write_model(tmp_path, model), "claim more than")


def test_values_that_are_fewer_than_claimed_are_refused(tmp_path: Path) -> None:
    model = convnet()
    model.graph.initializer.append(
        TensorProto(name="few", dims=[1000], data_type=TensorProto.FLOAT, float_data=[1.0])
    )

    refused(write_model(tmp_path, model), "'few' claims 1000 values and holds 1")


def test_texts_that_are_fewer_than_claimed_are_refused(tmp_path: Path) -> None:
    model = convnet()
    model.graph.initializer.append(
        TensorProto(name="texts", dims=[1 << 40], data_type=TensorProto.STRING, string_data=[b"a"])
    )

    refused(write_model(tmp_path, model), "'texts' claims 1099511627776 values and holds 1")


def external(folder: Path, location: str) -> Path:
    """A model whose first weights lie in another file."""
    model = convnet()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return write_model(folder, model)


def test_external_data_in_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    refused(external(tmp_path, "pipe"), "not an ordinary file")


def test_external_data_behind_links_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")

    refused(external(tmp_path, "a"), "cannot be read")


def test_external_data_with_an_impossible_name_is_refused(tmp_path: Path) -> None:
    refused(external(tmp_path, "a\0b"), "outside the model's folder")
