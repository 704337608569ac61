"""The MLServer runtime, which it imports by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceResponse  # type: ignore[import-not-found]

from benchmarks.serving.peers import forms


class Model(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self.run = forms.engine(Path(os.environ["MODEL"]))
        return True

    async def predict(self, payload: Any) -> Any:
        result = self.run(NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output(name="y", payload=result)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
