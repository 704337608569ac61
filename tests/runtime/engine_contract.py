"""The suite that every engine passes. An engine's test module inherits it and gives its models."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.errors import DataError, EngineError, EngineNotInstalled
from edgekit.manifest import Datatype
from edgekit_runtime.engines import Engine, Evidence, Session
from edgekit_runtime.engines.batches import can_batch, run_all
from edgekit_runtime.engines.tensors import DTYPES

CYCLES = 16
# Half of what they would keep if none gave its weights back; less is the allocator's to keep.
KEPT_BYTES = CYCLES * (4 << 20) // 2


class EngineContract:
    """Subclasses give `engine` and `artifact`: y = relu(x), FP32, x of shape [rows, 4].

    Attributes:
        options: what artefacts are opened with.
        rows: how many rows the engine takes; None where they are the caller's.
        atol: how far answers may be off.
        datatypes: those that `identity` gives a model of.
    """

    engine: ClassVar[Engine]
    options: ClassVar[Mapping[str, Any]] = {}
    rows: ClassVar[int | None] = None
    atol: ClassVar[float] = 0.0
    datatypes: ClassVar[Sequence[Datatype]] = ("FP32",)

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def session(self, artifact: Path) -> Iterator[Session]:
        opened = self.open(artifact)
        yield opened
        opened.close()

    def identity(self, folder: Path, datatype: Datatype) -> Path:
        """y = x of this datatype, shape [2, 3]."""
        raise NotImplementedError

    def scalar(self, folder: Path) -> Path | None:
        """y = -x of FP32, shape []; None where the engine has no scalars."""
        raise NotImplementedError

    def several(self, folder: Path) -> Path:
        """sum = a + b and product = a * b of FP32, shape [1, 4], in this order."""
        raise NotImplementedError

    def heavy(self, folder: Path) -> Path:
        """y = x w of FP32, x of shape [1, 1024], w of 4 MiB."""
        raise NotImplementedError

    def open(self, artifact: Path) -> Session:
        return self.engine.open(artifact, options=dict(self.options))

    def some(self, rows: int = 1, *, seed: int = 0) -> NDArray[np.float32]:
        x = np.random.default_rng(seed).uniform(-4, 4, (self.rows or rows, 4))
        return x.astype(np.float32)

    def check(self, got: NDArray[Any], wanted: NDArray[Any]) -> None:
        np.testing.assert_allclose(got, wanted, atol=self.atol, rtol=0)

    def test_it_tells_its_version(self) -> None:
        assert self.engine.version()[0].isdigit()

    def test_it_tells_what_of_it_was_run(self) -> None:
        assert self.engine.evidence in get_args(Evidence)
        assert self.engine.evidence_note

    def test_it_describes_inputs_and_outputs(self, session: Session) -> None:
        (x,), (y,) = session.inputs, session.outputs

        assert (x.name, x.datatype, x.shape) == ("x", "FP32", (self.rows or -1, 4))
        assert (y.name, y.datatype) == ("y", "FP32")
        assert session.providers

    def test_it_says_where_the_model_runs(self, session: Session) -> None:
        placed = session.placement

        assert placed is not None
        assert placed.source
        assert 0 <= placed.share <= 1

    def test_it_computes_whatever_the_number_of_rows(self, session: Session) -> None:
        for rows in (1, 3, 1):
            x = self.some(rows, seed=rows)

            self.check(session.run({"x": x})["y"], np.maximum(x, 0))

    def test_it_takes_read_only_and_strided_arrays(self, session: Session) -> None:
        wide = np.repeat(self.some(2), 2, axis=1)
        wide.flags.writeable = False
        x = wide[:, ::2]

        self.check(session.run({"x": x})["y"], np.maximum(x, 0))

    def test_outputs_stay_after_the_next_run(self, session: Session) -> None:
        ones = np.ones_like(self.some())
        first = session.run({"x": ones})["y"]
        session.run({"x": np.zeros_like(ones)})

        self.check(first, ones)

    def test_each_datatype_passes_unchanged(self, tmp_path: Path) -> None:
        for datatype in self.datatypes:
            session = self.open(self.identity(tmp_path, datatype))
            (x,), (y,) = session.inputs, session.outputs
            values = _extremes(datatype)

            got = session.run({x.name: values})[y.name]

            assert (x.datatype, y.datatype, got.dtype) == (datatype, datatype, DTYPES[datatype])
            assert got.tolist() == values.tolist(), datatype
            session.close()

    def test_scalars_pass(self, tmp_path: Path) -> None:
        path = self.scalar(tmp_path)
        if path is None:
            pytest.skip("this engine has no scalars")
        session = self.open(path)

        for value in (np.array(3, np.float32), np.float32(3)):
            y = session.run({"x": value})["y"]  # type: ignore[dict-item]

            assert y.shape == ()
            self.check(y, np.array(-3, np.float32))

    def test_several_inputs_and_outputs_go_by_their_names(self, tmp_path: Path) -> None:
        session = self.open(self.several(tmp_path))
        a, b = np.array([[1, 2, -1, 0]], np.float32), np.array([[2, 0.5, 1, 3]], np.float32)

        outputs = session.run({"b": b, "a": a})

        assert [spec.name for spec in session.inputs] == ["a", "b"]
        assert [spec.name for spec in session.outputs] == list(outputs) == ["sum", "product"]
        self.check(outputs["sum"], a + b)
        self.check(outputs["product"], a * b)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"x": np.zeros((1, 5), np.float32)}, "'x' must have shape"),
            ({"x": np.zeros(4, np.float32)}, "'x' must have shape"),
            ({"x": np.zeros((1, 4))}, "'x' must be FP32, it is FP64"),
            ({}, "'x' is missing"),
            ({"x": np.zeros((1, 4), np.float32), "z": np.zeros(1)}, "no input 'z'"),
        ],
    )
    def test_it_names_the_input_that_is_wrong(
        self, session: Session, inputs: dict[str, np.ndarray], message: str
    ) -> None:
        with pytest.raises(EngineError, match=message):
            session.run(inputs)

        assert session.run({"x": self.some()})["y"].shape == (self.rows or 1, 4)

    def test_another_thread_may_own_the_session(self, session: Session) -> None:
        outputs: list[NDArray[Any]] = []
        ones = np.ones_like(self.some())
        thread = threading.Thread(target=lambda: outputs.append(session.run({"x": ones})["y"]))
        thread.start()
        thread.join()

        self.check(outputs[0], ones)

    def test_a_closed_session_says_so(self, session: Session) -> None:
        session.close()
        session.close()

        with pytest.raises(EngineError, match="closed"):
            session.run({"x": self.some()})

    def test_closing_gives_memory_back(self, tmp_path: Path) -> None:
        path = self.heavy(tmp_path)

        def cycle() -> None:
            session = self.open(path)
            session.run({session.inputs[0].name: np.ones((1, 1024), np.float32)})
            session.close()
            del session
            gc.collect()

        cycle()
        cycle()
        before = _resident_bytes()
        for _ in range(CYCLES):
            cycle()

        assert _resident_bytes() - before < KEPT_BYTES

    @pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 1000])
    def test_a_foreign_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "foreign"
        path.write_bytes(content)

        with pytest.raises(EngineError, match="foreign"):
            self.open(path)

    def test_a_file_that_was_cut_off_is_refused(self, artifact: Path) -> None:
        whole = artifact.read_bytes()
        artifact.write_bytes(whole[: len(whole) // 2])

        with pytest.raises(EngineError, match=artifact.name):
            self.open(artifact)

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match="missing"):
            self.open(tmp_path / "missing")

    @pytest.mark.parametrize("options", [{"thread": 1}, {"threads": 0}, {"threads": "1"}])
    def test_options_it_does_not_know_are_refused(
        self, artifact: Path, options: dict[str, object]
    ) -> None:
        with pytest.raises(EngineError, match="options of engine"):
            self.engine.open(artifact, options={**self.options, **options})

    def test_many_samples_come_back_in_their_order(self, session: Session) -> None:
        x = np.concatenate([self.some(seed=seed) for seed in range(70)])

        self.check(run_all(session, {"x": x})["y"], np.maximum(x, 0))
        assert isinstance(can_batch(session), bool)

    def test_samples_that_do_not_fit_are_named(self, session: Session) -> None:
        with pytest.raises(DataError, match="'x'"):
            run_all(session, {"x": np.zeros((3, 5), np.float32)})
        with pytest.raises(DataError, match="no samples"):
            run_all(session, {"x": np.zeros((0, 4), np.float32)})


class AbsentContract:
    """What an adapter does on a machine without its library, which is all that was ever run of it.

    Subclasses give `engine`, `options` that are right, `magic` that its files begin with, and
    `package`, what the hint names.
    """

    engine: ClassVar[Engine]
    options: ClassVar[Mapping[str, Any]]
    magic: ClassVar[bytes]
    package: ClassVar[str]

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Path:
        path = tmp_path / "model"
        path.write_bytes(self.magic + bytes(60))
        return path

    def test_it_says_that_it_was_never_run(self) -> None:
        assert self.engine.evidence == "never run"
        assert self.engine.evidence_note

    def test_without_the_library_the_hint_says_what_to_install(self, artifact: Path) -> None:
        with pytest.raises(EngineNotInstalled) as opening:
            self.engine.open(artifact, options=self.options)
        with pytest.raises(EngineNotInstalled):
            self.engine.version()
        assert self.package in (opening.value.hint or "")

    @pytest.mark.parametrize("content", [b"", b"TFL3", b"\x00" * 1000])
    def test_a_foreign_file_is_refused_before_the_library_sees_it(
        self, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "foreign"
        path.write_bytes(content)

        with pytest.raises(EngineError, match="foreign: it is not"):
            self.engine.open(path, options=self.options)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(EngineError, match=r"nowhere: No such file"):
            self.engine.open(tmp_path / "nowhere", options=self.options)

    def test_without_its_tensors_a_file_is_not_opened(self, artifact: Path) -> None:
        with pytest.raises(EngineError, match=r"options of engine .*inputs"):
            self.engine.open(artifact, options={})

    def test_options_it_does_not_know_are_refused(self, artifact: Path) -> None:
        with pytest.raises(EngineError, match=r"options of engine .*threads"):
            self.engine.open(artifact, options={**self.options, "threads": 2})


def _extremes(datatype: Datatype) -> NDArray[Any]:
    """Six values of a datatype, its ends among them."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        texts = [b"caf\xc3\xa9", b"", b"a b", b"\n", b"0", b"\xf0\x9f\x99\x82"]
        return np.array(texts, dtype=object).reshape(2, 3)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    ends = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[0, 1, 2], [ends.min, ends.max, 100]], dtype)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
