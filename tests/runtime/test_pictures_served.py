"""A client sends a picture over HTTP and gets labels, or boxes in pixels of what it sent."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.manifest import Pipeline
from edgekit.steps import Layout, Normalise, Resize, Softmax, TopK
from edgekit_runtime import pipeline
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.server import Server
from tests import bundles
from tests.runtime import served
from tests.runtime.served import Answer, Wire

SIZE, CLASSES = 32, 8
LABELS = tuple(f"thing {i}" for i in range(CLASSES))
STEPS = Pipeline(
    pre=(Resize(width=SIZE, height=SIZE), Normalise(), Layout(to="NCHW")),
    post=(Softmax(), TopK(k=3, labels=LABELS)),
)
MODEL = bundles.convnet(size=SIZE, channels=CLASSES, layers=2)
PHOTO = np.random.default_rng(5).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def jpeg(pixels: NDArray[np.uint8] = PHOTO) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    models = Models(measure=served.worker)
    served.load(models, folder, model=MODEL, pipeline=STEPS)
    with served.serving(models) as running:
        yield running


def ask(
    running: Server,
    tensor: dict[str, Any],
    data: bytes,
    *,
    outputs: Sequence[str] = (),
) -> Answer:
    body: dict[str, Any] = {
        "inputs": [{"name": "x", "parameters": {"binary_data_size": len(data)}, **tensor}]
    }
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    raw = json.dumps(body).encode()
    length = f"Inference-Header-Content-Length: {len(raw)}"
    with Wire(running) as wire:
        return wire.ask(served.post("/v2/models/tiny/infer", raw + data, length))


def files(*each: bytes) -> tuple[dict[str, Any], bytes]:
    """A BYTES tensor of encoded pictures."""
    data = b"".join(len(one).to_bytes(4, "little") + one for one in each)
    return {"datatype": "BYTES", "shape": [len(each)]}, data


def directly(picture: bytes | NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The same by the library itself."""
    prepared = pipeline.preprocess(STEPS.pre, picture)
    scores = bundles.directly(MODEL, prepared[np.newaxis])
    return pipeline.finish(STEPS.post, {"y": scores}, (pipeline.whole(SIZE, SIZE),))


def values(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    return {one["name"]: one["data"] for one in answer.json["outputs"]}


def test_a_jpeg_gets_labels(tmp_path: Path) -> None:
    want = directly(jpeg())

    with server(tmp_path) as running:
        found = values(ask(running, *files(jpeg())))

    assert list(found) == ["labels", "scores", "indices"]
    assert found["labels"] == [label.decode() for label in want["labels"][0]]
    np.testing.assert_allclose(found["scores"], want["scores"][0], rtol=1e-4)


def test_several_pictures_of_different_sizes_are_one_request(tmp_path: Path) -> None:
    other = jpeg(PHOTO[:20, :30])
    want = [directly(data)["indices"][0].tolist() for data in (jpeg(), other)]

    with server(tmp_path) as running:
        found = values(ask(running, *files(jpeg(), other), outputs=["indices", "y"]))

    assert np.reshape(found["indices"], (2, 3)).tolist() == want
    assert len(found["y"]) == 2 * CLASSES


def test_pixels_get_labels_too(tmp_path: Path) -> None:
    tensor = {"datatype": "UINT8", "shape": list(PHOTO.shape)}

    with server(tmp_path) as running:
        found = values(ask(running, tensor, PHOTO.tobytes()))

    assert found["indices"] == directly(PHOTO)["indices"][0].tolist()


def test_a_tensor_gets_the_models_outputs_and_labels_where_it_asks(tmp_path: Path) -> None:
    prepared = pipeline.preprocess(STEPS.pre, PHOTO)[np.newaxis]
    tensor = {"datatype": "FP32", "shape": list(prepared.shape)}

    with server(tmp_path) as running:
        plain = values(ask(running, tensor, prepared.tobytes()))
        labelled = values(ask(running, tensor, prepared.tobytes(), outputs=["labels"]))

    assert list(plain) == ["y"]
    assert labelled["labels"] == [text.decode() for text in directly(PHOTO)["labels"][0]]


def test_a_damaged_picture_is_a_bad_request_that_names_it(tmp_path: Path) -> None:
    with server(tmp_path) as running:
        refused = ask(running, *files(jpeg(), b"no picture"))
        after = ask(running, *files(jpeg()))

    assert refused.status == 400
    assert "input 'x': picture 1 is not a picture" in refused.error
    assert after.status == 200
