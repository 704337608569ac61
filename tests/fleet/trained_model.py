"""A model that can be trained: the digits of the demo, built as an operator would build them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from edgekit import bundle, training
from edgekit.bundle import Bundle
from edgekit.messages import RoundOpen, UpdateHeader
from edgekit.signing import SigningKey
from edgekit.tensors import Arrays
from edgekit_converters.demo.digits import write_digits
from tests.fleet.device_simulator import Trainer
from tests.fleet.processes import edgekit

PROFILE = "generic-x86_64"


class Digits:
    """Model, data and recipe in a folder.

    Args:
        folder: where they are written.
        key: who signs.
    """

    def __init__(self, folder: Path, *, key: Path, devices: int = 3) -> None:
        write_digits(folder, devices=devices, seed=7)
        self.folder = folder
        self.key = key
        self.source = folder / "digits.onnx"
        self.data = folder / "heldout.npz"
        self.recipe = folder / "digits.yaml"
        self.recipe.write_text("training: {}\npasses: []\n")

    def build(self, version: str) -> Path:
        out = self.folder / version
        done = edgekit(
            *("build", str(self.source), "--profile", PROFILE, "--data", str(self.data)),
            *("--recipe", str(self.recipe), "--key", str(self.key), "--name", "digits"),
            *("--version", version, "--out", str(out), "--json"),
        )
        assert done.returncode == 0, done.stderr
        return next(out.glob("*.edge"))

    def renumber(self, built: Path, version: str) -> Path:
        """The same bundle as another version, without building it again."""
        with Bundle.open(built) as opened:
            own = (bundle.MANIFEST, bundle.SIGNATURE)
            content = {name: opened.read(name) for name in opened.names() if name not in own}
            manifest = msgspec.structs.replace(opened.manifest, version=version, entries={})
        reports = {name: c for name, c in content.items() if name.startswith(bundle.REPORTS)}
        path = self.folder / f"digits-{version}.edge"
        bundle.write(
            path,
            manifest,
            entries={name: c for name, c in content.items() if name not in reports},
            reports=reports,
            key=SigningKey.read(self.key),
        )
        return path

    def trainer(self, path: Path, device: str, *, number: int) -> Trainer:
        """Trains with the bundle's own graph on the data of one device."""
        with Bundle.open(path) as opened:
            graph = bytes(opened.read(training.TRAIN))
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        shapes = {item.name: item.shape for item in session.get_inputs()}
        outputs = [item.name for item in session.get_outputs()]
        with np.load(self.folder / f"device-{number}.npz") as data:
            images, labels = data["input"], data["labels"]

        def train(opened: RoundOpen, parameters: Arrays) -> tuple[UpdateHeader, Arrays]:
            state: dict[str, Any] = {
                name: np.zeros(shape, np.float32)
                for name, shape in shapes.items()
                if name.startswith(training.STATE)
            }
            weights, losses = dict(parameters), []
            rate = np.array(opened.learning_rate, np.float32)
            for _ in range(opened.epochs):
                for start in range(0, len(labels) - opened.batch_size + 1, opened.batch_size):
                    rows = slice(start, start + opened.batch_size)
                    batch = {"input": images[rows], "labels": labels[rows], "learning_rate": rate}
                    found = dict(
                        zip(
                            outputs,
                            session.run(outputs, {**weights, **state, **batch}),
                            strict=True,
                        )
                    )
                    losses.append(float(found["loss"]))
                    weights = {name: found[training.UPDATED + name] for name in weights}
                    state = {name: found[training.UPDATED + name] for name in state}
            header = UpdateHeader(
                round=opened.round,
                device=device,
                parameters_sha256=opened.parameters_sha256,
                samples=len(labels),
                loss_before=losses[0],
                loss_after=losses[-1],
                seconds=0.1,
            )
            return header, {name: weights[name] - parameters[name] for name in parameters}

        return train
