"""sklearn_to_onnx: a program that reads a scikit-learn estimator and writes it as ONNX.

    python sklearn_to_onnx.py model.skops out.onnx [--trust-pickle]

It runs in a process of its own and imports nothing of edgekit; its reply goes to `out.json`. A
skops file is loaded without trust: of types that skops does not know, only those are built that
scikit-learn's own models hold and whose content is checked here before any code relies on it. A
pickle is loaded only with `--trust-pickle`. The ONNX model is run beside the estimator, and one
that answers differently is not written.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

OPSET = 17
ML_OPSET = 3
SAMPLES = 64
_TEXT = 8  # onnx.TensorProto.STRING
# The method whose answers an output holds.
_ASKED = {
    "probabilities": "predict_proba",
    "scores": "decision_function",
    "prediction": "predict",
    "label": "predict",
    "output": "transform",
}
_PIP = "pip install 'edgekit-ml[sklearn]'"
_TREES = frozenset(
    {
        "sklearn.tree._tree.Tree",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    }
)
# Types that skops leaves to its user: plain holders of numbers, and trees, whose indices are
# checked by `_require_sound_trees` because scikit-learn follows them without looking.
_KNOWN = _TREES | {
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.utils._bunch.Bunch",
}


class Refused(Exception):
    """There will be no model; the reason and what to do next."""

    def __init__(self, error: str, hint: str, *, missing: bool = False) -> None:
        super().__init__(error)
        self.reply: dict[str, Any] = {"error": error, "hint": hint, "missing": missing}


def main(source: Path, target: Path, options: list[str]) -> None:
    """Convert and leave the reply beside the target."""
    try:
        reply = convert(source, target, trust_pickle="--trust-pickle" in options)
    except Refused as e:
        reply = e.reply
    target.with_suffix(".json").write_text(json.dumps(reply))


def convert(source: Path, target: Path, *, trust_pickle: bool) -> dict[str, Any]:
    """Read, convert, compare, write; the reply, raising `Refused` where there is no model."""
    try:
        import skl2onnx  # type: ignore[import-untyped]  # noqa: F401
        import skops  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as e:
        raise Refused(f"{e.name} is not installed", _PIP, missing=True) from e
    estimator = _load(source, trust_pickle=trust_pickle)
    _require_sound_trees(estimator)
    model = _converted(estimator)
    _require_same_answers(estimator, model)
    target.write_bytes(model.SerializeToString(deterministic=True))
    distributions = ["scikit-learn", "skl2onnx", *([] if trust_pickle else ["skops"])]
    return {"tools": {name: metadata.version(name) for name in distributions}}


def _load(source: Path, *, trust_pickle: bool) -> Any:
    from sklearn.exceptions import InconsistentVersionWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator = _unpickled(source) if trust_pickle else _read_skops(source)
    for warning in caught:
        if isinstance(warning.message, InconsistentVersionWarning):
            _require_same_series(warning.message)
    if not hasattr(estimator, "get_params"):
        raise Refused(
            f"holds a {type(estimator).__name__}, not a scikit-learn estimator",
            "save the fitted estimator or pipeline itself",
        )
    return estimator


def _read_skops(source: Path) -> Any:
    import skops.io  # type: ignore[import-untyped]

    try:
        unknown = set(skops.io.get_untrusted_types(file=source)) - _KNOWN
        if unknown:
            raise Refused(
                f"holds types that are not known to be safe: {', '.join(sorted(unknown))}",
                "convert it with skl2onnx where you trust the file, and build from the ONNX model",
            )
        return skops.io.load(source, trusted=sorted(_KNOWN))
    # skops raises whatever its nodes raise on content that does not fit them.
    except (
        ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError,
        RuntimeError, TypeError, ValueError,
    ) as e:  # fmt: skip
        raise Refused(
            f"is not a skops file that can be read: {_line(e)}",
            "save it again with skops.io.dump, with the versions that are installed here",
        ) from e


def _unpickled(source: Path) -> Any:
    import joblib  # type: ignore[import-untyped]

    try:
        return joblib.load(source)
    # The pickled classes run their own code.
    except Exception as e:
        raise Refused(
            f"cannot be unpickled: {type(e).__name__}: {_line(e)}",
            "save it with the versions of Python packages that are installed here",
        ) from e


def _require_same_series(warning: Any) -> None:
    """Refuse an estimator of another minor version: its attributes may mean something else."""
    saved, current = warning.original_sklearn_version, warning.current_sklearn_version
    if saved.split(".")[:2] != current.split(".")[:2]:
        raise Refused(
            f"was saved with scikit-learn {saved}, and {current} is installed",
            f"pip install scikit-learn=={saved}, or save it again with {current}",
        )


def _parts(value: Any) -> Iterator[Any]:
    """An estimator and everything in it."""
    import numpy as np

    pending, seen = [value], set()
    while pending:
        part = pending.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, dict):
            pending += part.values()
        elif isinstance(part, list | tuple | set):
            pending += part
        elif isinstance(part, np.ndarray):
            pending += part.ravel().tolist() if part.dtype == object else []
        else:
            pending += vars(part).values() if hasattr(part, "__dict__") else []


def _require_sound_trees(estimator: Any) -> None:
    """Refuse trees with children or features that do not exist, or that lead in a circle."""
    import numpy as np

    for part in _parts(estimator):
        kind = f"{type(part).__module__}.{type(part).__name__}"
        if kind not in _TREES:
            continue
        if kind.endswith("TreePredictor"):
            nodes = part.nodes
            inner = ~nodes["is_leaf"].astype(bool)
            left, right, feature = nodes["left"], nodes["right"], nodes["feature_idx"]
            features = getattr(estimator, "n_features_in_", 0)
        else:
            left, right, feature = part.children_left, part.children_right, part.feature
            inner, features = left != -1, part.n_features
            if (right[~inner] != -1).any():
                raise _unsound(kind)
        own = np.arange(len(left))[inner]
        for child in (left[inner].astype(np.int64), right[inner].astype(np.int64)):
            # A child stands behind its parent, so there is no circle.
            if (child <= own).any() or (child >= len(left)).any():
                raise _unsound(kind)
        used = feature[inner].astype(np.int64)
        if len(left) == 0 or (used < 0).any() or (used >= features).any():
            raise _unsound(kind)


def _unsound(kind: str) -> Refused:
    return Refused(
        f"holds a {kind} whose nodes point to nodes or features that do not exist",
        "the file is damaged or forged: save the model again",
    )


def _converted(estimator: Any) -> Any:
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType  # type: ignore[import-untyped]

    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        raise Refused(
            f"takes text or other values than numbers, or is not fitted"
            f" ({type(estimator).__name__} does not say how many features it has)",
            "fit it; turn text into numbers before the model, and save what follows",
        )
    names = _outputs(estimator)
    # Which options a converter knows is told only by its refusal of the others.
    tried = [{"zipmap": False, "raw_scores": True}, {"zipmap": False}, {"raw_scores": True}, {}]
    for options in tried:
        if "raw_scores" in options and "scores" not in names:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of attributes that scikit-learn will drop
                model = skl2onnx.convert_sklearn(
                    estimator,
                    name="model",
                    initial_types=[("input", FloatTensorType([None, int(features)]))],
                    options={id(estimator): options} if options else None,
                    target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
                )
        except (NameError, RuntimeError) as e:
            if options and str(e).startswith("Option"):
                continue
            raise Refused(f"cannot be converted: {_line(e)}", _hint(e)) from e
        # Converters are plain numpy code of many authors.
        except Exception as e:
            raise Refused(f"cannot be converted: {_line(e)}", _hint(e)) from e
        _arrange(model, names)
        _describe_classes(estimator, model)
        return model
    raise AssertionError("the last attempt has no options")


def _outputs(estimator: Any) -> tuple[str, ...]:
    """Names of the outputs, what scores a class first."""
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor

    if is_classifier(estimator):
        if hasattr(estimator, "predict_proba"):
            return "probabilities", "label"
        return ("scores", "label") if hasattr(estimator, "decision_function") else ("label",)
    if is_regressor(estimator):
        return ("prediction",)
    if is_clusterer(estimator) or is_outlier_detector(estimator):
        return "scores", "label"
    return ("output",)


def _arrange(model: Any, names: tuple[str, ...]) -> None:
    """Scores first, under the names that edgekit gives; skl2onnx puts labels first.

    Labels that are texts are left out: the columns of the scores have the same order, and a
    program on a board reads numbers.
    """
    outputs = list(model.graph.output)
    if len(outputs) == 2 and len(names) == 1:
        outputs = outputs[:1]
    if len(outputs) != len(names):
        raise Refused(
            f"has {len(outputs)} outputs as ONNX, where {', '.join(names)} were expected",
            "convert it with skl2onnx, and build from the ONNX model",
        )
    for value, name in zip(outputs, reversed(names), strict=True):
        _rename(model.graph, value.name, name)
        value.name = name
    kept = [v for v in reversed(outputs) if v.type.tensor_type.elem_type not in (0, _TEXT)]
    if not kept:
        raise Refused(
            "answers with texts alone, and a program on a board reads numbers",
            "fit it on classes that are whole numbers",
        )
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _rename(graph: Any, old: str, new: str) -> None:
    """Give a tensor a new name; one that has it already makes room."""
    names = {old: new} if old == new else {old: new, new: f"{new}.inner"}
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]


def _describe_classes(estimator: Any, model: Any) -> None:
    """Keep what the columns of the scores stand for with the model."""
    classes = getattr(estimator, "classes_", None)
    if classes is not None and getattr(classes, "ndim", 0) == 1:
        entry = model.metadata_props.add()
        entry.key, entry.value = "classes", json.dumps(classes.tolist())


def _require_same_answers(estimator: Any, model: Any) -> None:
    """Run both on the same random inputs; conversions are known to differ in silence."""
    import numpy as np
    import onnxruntime

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES, estimator.n_features_in_)).astype(np.float32)
    inputs[::2] *= 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    first = model.graph.output[0].name
    ask = _ASKED[first]
    if first == "scores" and not hasattr(estimator, ask):
        ask = "transform"  # distances, of a clusterer
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        answers = session.run([first], {"input": inputs})[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fitted with names of features, asked without
            wanted = np.asarray(getattr(estimator, ask)(inputs)).reshape(answers.shape)
    # Whatever the engine or the estimator raises, nothing shows that the model is right.
    except Exception as e:
        raise Refused(f"cannot be compared with its ONNX form: {_line(e)}", _hint(e)) from e
    # A float32 input that lies on the threshold of a tree may fall to the other side.
    scale = 1e-4 * float(np.abs(wanted).max(initial=0.0)) + 1e-5
    same = np.isclose(answers, wanted, rtol=1e-3, atol=scale).reshape(SAMPLES, -1).all(axis=1)
    if same.mean() < 0.95:
        raise Refused(
            f"answers differently as ONNX: {SAMPLES - same.sum()} of {SAMPLES} random inputs differ"
            f" by up to {np.abs(answers - wanted).max():.3g} in {first!r}",
            "report it to skl2onnx; build from another estimator until then",
        )


def _hint(error: Exception) -> str:
    if "ShapeCalculator" in type(error).__name__ or "Converter" in type(error).__name__:
        return "skl2onnx knows no such step: replace it by one of scikit-learn's own"
    return "fit it on a plain array of numbers (columns by position, no text), or take another step"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
