"""Quantises a float `.tflite` to 8-bit weights (by channel) and activations, within given ranges.

Request: `model` and `artifact` (paths), `ranges` (lowest and highest value by tensor),
`per_channel`, and `keep_float` (tensors: the operators that make them stay in float).
Reply: `version`.
"""

import re
from importlib import metadata

import numpy as np
from litert_quantizer import qtyping, quantizer

_BITS = 8


def run(request: dict) -> dict:
    """Quantise all operators that the tool knows, inputs and outputs of the model too."""
    operators, granularity = qtyping.TFLOperationName, qtyping.QuantGranularity
    weights = granularity.CHANNELWISE if request["per_channel"] else granularity.TENSORWISE
    tool = quantizer.Quantizer(request["model"])
    tool.add_static_config(".*", operators.ALL_SUPPORTED, _BITS, _BITS, weights)
    # With several scales LiteRT's kernels of this one compute wrongly, without a word.
    tool.add_static_config(".*", operators.BATCH_MATMUL, _BITS, _BITS, granularity.TENSORWISE)
    for name in request["keep_float"]:
        tool.update_quantization_recipe(
            f"(^|;){re.escape(name)}(;|$)",
            operators.ALL_SUPPORTED,
            algorithm_key="no_quantize",
        )
    ranges = {
        name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
        for name, (low, high) in request["ranges"].items()
    }
    try:
        made = tool.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    # Each step of the tool raises an error of its own, and they all mean the same.
    except Exception as e:
        raise ValueError(f"{type(e).__name__}: {' '.join(str(e).split())[:400]}") from e
    with open(request["artifact"], "wb") as file:
        file.write(made.quantized_model)
    return {"version": metadata.version("litert-quantizer")}
