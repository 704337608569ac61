"""A scikit-learn estimator answers as ONNX what it answers itself; a harmful file is not run."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
import onnx
import onnxruntime
import pytest
import skops.io  # type: ignore[import-untyped]
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from edgekit.errors import ModelError
from edgekit_converters import source
from edgekit_converters.normalise import normalise
from edgekit_converters.source import OnnxSource
from edgekit_converters.sources import onnx_file, sklearn_to_onnx

FITTED, ASKED = slice(0, 400), slice(400, 500)


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    pictures, labels = load_digits(return_X_y=True)
    return pictures.astype(np.float32), labels


def answers(model: bytes, inputs: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": inputs}), strict=True))


def write(folder: Path, estimator: Any) -> Path:
    path = folder / "model.skops"
    skops.io.dump(estimator, path)
    return path


def refused(path: Path, message: str) -> ModelError:
    with pytest.raises(ModelError, match=message) as error:
        source.read(path)
    assert str(path) in error.value.message
    assert error.value.hint
    return error.value


def converted(path: Path) -> dict[str, Any]:
    """In this process, which takes no time to start."""
    return sklearn_to_onnx.convert(path, path.with_suffix(".onnx"), trust_pickle=False)


@pytest.mark.parametrize(
    ("estimator", "scores"),
    [
        (LogisticRegression(max_iter=30), "probabilities"),
        (RandomForestClassifier(20, random_state=0), "probabilities"),
        (GradientBoostingClassifier(n_estimators=3, random_state=0), "probabilities"),
        (
            make_pipeline(StandardScaler(), MLPClassifier((24,), max_iter=30, random_state=0)),
            "probabilities",
        ),
        (SVC(), "scores"),
        (Ridge(), "prediction"),
    ],
    ids=["logistic", "forest", "boosting", "pipeline", "svc", "ridge"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_estimator_answers_as_onnx_what_it_answers_itself(
    estimator: Any,
    scores: str,
    digits: tuple[NDArray[np.float32], NDArray[np.int64]],
    tmp_path: Path,
) -> None:
    pictures, labels = digits
    estimator.fit(pictures[FITTED], labels[FITTED])
    asked = pictures[ASKED]

    path = write(tmp_path, estimator)
    assert set(converted(path)["tools"]) == {"scikit-learn", "skl2onnx", "skops"}
    model, _ = onnx_file.read(path.with_suffix(".onnx"))

    normal = normalise(model, shapes={}, max_opset=17, max_ir=8)
    assert [spec.name for spec in normal.inputs] == ["input"]
    assert normal.inputs[0].shape == (-1, 64)
    found = answers(normal.model.SerializeToString(), asked)
    assert next(iter(found)) == scores
    method = {"probabilities": "predict_proba", "scores": "decision_function"}.get(
        scores, "predict"
    )
    wanted = getattr(estimator, method)(asked)
    np.testing.assert_allclose(found[scores].reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-4)
    if "label" in found:
        assert np.array_equal(found["label"], estimator.predict(asked))
        assert json.loads(model.metadata_props[0].value) == list(range(10))


@pytest.fixture(scope="module")
def logistic(digits: tuple[NDArray[np.float32], NDArray[np.int64]]) -> LogisticRegression:
    return LogisticRegression(max_iter=1000).fit(digits[0][FITTED] / 16, digits[1][FITTED])


def test_the_same_file_gives_the_same_bytes(logistic: LogisticRegression, tmp_path: Path) -> None:
    path = write(tmp_path, logistic)

    first, second = source.read(path), source.read(path)

    assert isinstance(first, OnnxSource)
    assert isinstance(second, OnnxSource)
    assert first.origin == "skops"
    assert first.sha256 == second.sha256
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_a_pickle_is_refused_with_the_option_that_loads_it(
    logistic: LogisticRegression, tmp_path: Path
) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(logistic))

    error = refused(path, "a pickle, which can run any code when it is loaded")

    assert "--trust-pickle" in (error.hint or "")


def test_a_trusted_pickle_is_read(logistic: LogisticRegression, tmp_path: Path) -> None:
    path = tmp_path / "model.joblib"
    joblib.dump(logistic, path, compress=3)

    read = source.read(path, trust_pickle=True)

    assert isinstance(read, OnnxSource)
    assert read.origin == "pickle"
    assert set(read.tools) == {"scikit-learn", "skl2onnx"}


def test_a_trusted_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"weights": [1.0]}))

    with pytest.raises(sklearn_to_onnx.Refused, match="holds a dict, not a scikit-learn"):
        sklearn_to_onnx.convert(path, path.with_suffix(".onnx"), trust_pickle=True)


class Harmful:
    """A type that runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_harmful_pickle_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pkl", tmp_path / "mark"
    path.write_bytes(pickle.dumps(Harmful(mark)))

    refused(path, "pickle")

    assert not mark.exists()


def test_a_type_that_is_not_known_to_be_safe_is_refused_by_name(
    logistic: LogisticRegression, tmp_path: Path
) -> None:
    pipeline = make_pipeline(FunctionTransformer(os.path.basename), logistic)

    with pytest.raises(sklearn_to_onnx.Refused, match=r"to be safe: posixpath\.basename"):
        converted(write(tmp_path, pipeline))


def test_text_is_refused(tmp_path: Path) -> None:
    texts = ["a model", "a board", "a bundle"]
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [0, 1, 1])

    with pytest.raises(sklearn_to_onnx.Refused, match="takes text"):
        converted(write(tmp_path, pipeline))


def test_an_estimator_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sklearn_to_onnx.Refused, match="is not fitted"):
        converted(write(tmp_path, LogisticRegression()))


def test_an_estimator_of_another_series_of_scikit_learn_is_refused(
    logistic: LogisticRegression, tmp_path: Path
) -> None:
    path = rewrite(write(tmp_path, logistic), "schema.json", older)

    with pytest.raises(sklearn_to_onnx.Refused, match=r"saved with scikit-learn 1\.1\.3") as error:
        converted(path)

    assert "pip install scikit-learn==1.1.3" in error.value.reply["hint"]


def older(schema: bytes) -> bytes:
    current = metadata.version("scikit-learn").encode()
    assert current in schema
    return schema.replace(current, b"1.1.3")


def rewrite(path: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """The same archive with one entry changed; `name` may begin that of the entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    changed = path.with_name("changed.skops")
    with zipfile.ZipFile(changed, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, change(content) if entry.startswith(name) else content)
    return changed


def test_a_tree_whose_nodes_lead_nowhere_is_refused(
    digits: tuple[NDArray[np.float32], NDArray[np.int64]], tmp_path: Path
) -> None:
    forest = RandomForestClassifier(1, max_depth=2, random_state=0).fit(*digits)
    tree = forest.estimators_[0].tree_
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = 1_000_000
    tree.__setstate__(state)

    with pytest.raises(sklearn_to_onnx.Refused, match="point to nodes or features that do not"):
        converted(write(tmp_path, forest))


def test_classes_that_are_texts_stay_with_the_model(
    digits: tuple[NDArray[np.float32], NDArray[np.int64]], tmp_path: Path
) -> None:
    names = np.array(["even", "odd"])[digits[1][FITTED] % 2]
    path = write(tmp_path, LogisticRegression(max_iter=1000).fit(digits[0][FITTED] / 16, names))

    converted(path)

    model = onnx.load(path.with_suffix(".onnx"))
    assert [output.name for output in model.graph.output] == ["probabilities"]
    assert json.loads(model.metadata_props[0].value) == ["even", "odd"]


def test_a_damaged_archive_is_refused(logistic: LogisticRegression, tmp_path: Path) -> None:
    path = write(tmp_path, logistic)
    path.write_bytes(path.read_bytes()[:-30])

    refused(path, "damaged zip archive")


def test_an_archive_that_would_unpack_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", "{}")
        archive.writestr("array.npy", "")
    content = path.read_bytes()
    for entry in re.finditer(rb"PK\x01\x02", content):
        # The size that the directory claims for the entry.
        size = entry.start() + 24
        content = content[:size] + (0xFF000000).to_bytes(4, "little") + content[size + 4 :]
    path.write_bytes(content)

    refused(path, r"would unpack to \d+ bytes")


def test_an_archive_that_leads_out_of_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", "{}")
        archive.writestr("../outside", "")

    refused(path, "leads out of the archive")
