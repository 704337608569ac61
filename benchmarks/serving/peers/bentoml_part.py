"""The BentoML service, which its workers import by name."""

import os
from pathlib import Path
from typing import Annotated

import bentoml  # type: ignore[import-not-found]
import numpy as np
from bentoml.validators import ContentType  # type: ignore[import-not-found]

from benchmarks.serving.peers import forms

SHAPE = tuple(map(int, os.environ["SHAPE"].split()))
Octets = Annotated[bytes, ContentType(forms.OCTETS)]


@bentoml.service(
    workers=1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"sample_rate": 0.0},
)
class Model:
    def __init__(self) -> None:
        self.run = forms.engine(Path(os.environ["MODEL"]))

    @bentoml.api  # type: ignore[untyped-decorator]
    def binary(self, x: Octets, /) -> Octets:
        return self.run(np.frombuffer(x, dtype=np.float32).reshape(SHAPE)).tobytes()

    @bentoml.api  # type: ignore[untyped-decorator]
    def json(self, x: np.ndarray) -> np.ndarray:
        return self.run(x.astype(np.float32))
