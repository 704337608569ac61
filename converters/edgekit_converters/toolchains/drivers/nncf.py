"""NNCF: quantises a float ONNX graph, on calibration samples, into one with QDQ nodes.

Request: `model` and `artifact` (paths), `samples` (.npz: `i0`, `i1`, … in the order of `names`,
axis 0 counting samples, each of which is a whole input), `preset`, `ranges`, `bias_correction`,
`transformer` and `ignored`, the names of nodes that stay in float. Reply: `version`.
"""

import nncf
import numpy as np
import onnx
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

_PRESETS = {
    "performance": nncf.QuantizationPreset.PERFORMANCE,
    "mixed": nncf.QuantizationPreset.MIXED,
}
_RANGES = {"minmax": RangeEstimatorParametersSet.MINMAX, "mean": None}


def run(request: dict) -> dict:
    """Quantise."""
    samples = np.load(request["samples"])
    arrays = [samples[f"i{i}"] for i in range(len(request["names"]))]
    feeds = [dict(zip(request["names"], whole, strict=True)) for whole in zip(*arrays, strict=True)]
    correction = request["bias_correction"]
    advanced = AdvancedQuantizationParameters(
        disable_bias_correction=correction == "none",
        activations_range_estimator_params=_RANGES[request["ranges"]],
    )
    try:
        made = nncf.quantize(
            onnx.load(request["model"]),
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            preset=_PRESETS[request["preset"]],
            fast_bias_correction=correction != "accurate",
            model_type=nncf.ModelType.TRANSFORMER if request["transformer"] else None,
            ignored_scope=nncf.IgnoredScope(names=request["ignored"], validate=False),
            advanced_parameters=advanced,
        )
    # Whatever its steps raise, for a build it means the same.
    except Exception as e:
        raise ValueError(f"NNCF cannot quantise this model: {' '.join(str(e).split())}") from e
    onnx.save(made, request["artifact"])
    return {"version": nncf.__version__}
