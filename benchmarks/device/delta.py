"""Deltas between real bundles of EfficientNet-Lite0 in int8, with bsdiff and zstd beside them.

    python -m benchmarks.device.delta [--folder DIR] [--json FILE]

Bundles are built by `edgekit build` with static int8: a first version, and for each fine-tune (see
`fine_tunes`) a second one with `--base`, which keeps the scales of the first; of `all` one without,
too. `share` is the size of a delta as a share of the whole new bundle, with all that changes in it:
report, golden samples, signature; `model` is that of the artefact alone. bsdiff4 and `zstd
--patch-from` (level 19, long-distance matching) go from `.edge` file to `.edge` file; a delta is
applied to an unpacked slot. Peak memory counts from what the process had before it began. What was
made stays in the folder; a second run measures it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bsdiff4
import onnx
import zstandard
from onnx import numpy_helper

from benchmarks.device import fine_tunes
from benchmarks.device.delta_apply import WINDOW_LOG
from benchmarks.process import tell
from edgekit import delta, storage, tensors
from edgekit.bundle import Bundle
from edgekit_converters.demo.lite0 import write_lite0
from edgekit_converters.demo.photos import write_photos

_START = "from edgekit.cli import main; main()"
_RECIPE = """\
passes:
  - {name: static-int8, options: {calibrator: minmax}}
budget: {accuracy_drop: 0.3, min_agreement: 0.5}
search: {variants: 1}
"""
_MODEL, _SAMPLES = "lite0.onnx", "photos.npz"
_ARTIFACT = "artifacts/int8.onnx"
_CASES = {"head": True, "all": True, "all-own-scales": False, "hard": True}
"""Second versions, and whether they keep the scales of the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=storage.cache_home() / "benchmarks/delta")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    old, news = bundles(folder)
    figures: dict[str, Any] = {}
    for name, new in news.items():
        print(f"{name}: measuring")
        figures |= {f"{name} {what}": value for what, value in case(folder, old, new).items()}
    figures |= changes(folder)
    tell(figures, file=given.json)


def bundles(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The first bundle and the second ones, built where they are missing."""
    model, samples = folder / _MODEL, folder / _SAMPLES
    if not model.exists():
        write_lite0(model)
    if not samples.exists():
        write_photos(folder, crops=30)
    (folder / "recipe.yaml").write_text(_RECIPE, "utf-8")
    weights = fine_tunes.write(folder, model, samples)
    old = _built(folder, "first", "1.0.0")
    news = {}
    for name, keeps in _CASES.items():
        options = ["--weights", str(weights[name.partition("-")[0]])]
        options += ["--base", str(old)] if keeps else []
        news[name] = _built(folder, name, "1.1.0", *options)
    return old, news


def _built(folder: Path, name: str, version: str, *options: str) -> Path:
    out = folder / name
    if not (found := list(out.glob("*.edge"))):
        print(f"{name}: building")
        command = [
            *(sys.executable, "-c", _START, "build", str(folder / _MODEL)),
            *("--profile", "generic-x86_64", "--data", str(folder / _SAMPLES)),
            *("--recipe", str(folder / "recipe.yaml"), "--version", version),
            *("--out", str(out), "--json", *options),
        ]
        variables = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        variables["XDG_CONFIG_HOME"] = str(folder / "config")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=variables)
        found = list(out.glob("*.edge"))
    return found[0]


def case(folder: Path, old: Path, new: Path) -> dict[str, Any]:
    """Figures of one pair of bundles."""
    slot = folder / "slot"
    if not slot.exists():
        with Bundle.open(old) as bundle:
            bundle.unpack(slot)
    size_bytes = new.stat().st_size
    report = delta.make(old, new, folder / "delta.patch")
    bsdiff4.file_diff(str(old), str(new), str(folder / "bsdiff4.patch"))
    (folder / "zstd.patch").write_bytes(_patch_from(old.read_bytes(), new.read_bytes()))
    with Bundle.open(new) as bundle:
        artifact_bytes = bundle.manifest.entries[_ARTIFACT].size_bytes
    figures: dict[str, Any] = {
        "full MB": size_bytes / 1e6,
        "delta model": report.entries[_ARTIFACT] / artifact_bytes,
        "delta beside the model kB": (report.size_bytes - report.entries[_ARTIFACT]) / 1e3,
    }
    for way in ("delta", "bsdiff4", "zstd"):
        patch = folder / f"{way}.patch"
        found = _applied(way, slot if way == "delta" else old, patch, folder / "out.edge")
        if found["sha256"] != hashlib.sha256(new.read_bytes()).hexdigest():
            raise SystemExit(f"{way} did not make {new}")
        figures[f"{way} share"] = patch.stat().st_size / size_bytes
        figures[f"{way} apply CPU s"] = found["cpu_s"]
        figures[f"{way} apply peak MB"] = found["peak_mb"]
    return figures


def changes(folder: Path) -> dict[str, Any]:
    """How far the fine-tunes went: all weights, and the share of int8 weights that changed."""
    model = onnx.load(folder / _MODEL)
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    figures: dict[str, Any] = {}
    for name in ("head", "all", "hard"):
        raw = (folder / f"{name}.safetensors").read_bytes()
        after = tensors.decode(raw, what=name)
        figures[f"{name} relative change"] = fine_tunes.change(before, after)
    first = _int8(folder / "first")
    for name in _CASES:
        second = _int8(folder / name)
        moved = sum(int((second[key] != first[key]).sum()) for key in second)
        count = sum(values.size for values in second.values())
        figures[f"{name} int8 weights changed"] = moved / count
    return figures


def _int8(folder: Path) -> fine_tunes.Weights:
    (path,) = folder.glob("*.edge")
    with Bundle.open(path) as bundle:
        model = onnx.load_from_string(bundle.read(_ARTIFACT))
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    }


def _patch_from(old: bytes, new: bytes) -> bytes:
    """As `zstd -19 --long=27 --patch-from=OLD` makes it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=WINDOW_LOG, enable_ldm=True
    )
    raw = zstandard.ZstdCompressionDict(old, zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=raw, compression_params=parameters).compress(new)


def _applied(way: str, old: Path, patch: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.device.delta_apply", way]
    command += [str(old), str(patch), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    main()
