"""The peer table: what each tool makes of each real model, judged by one neutral harness.

Run: python -m benchmarks.build.compare [--model NAME…] [--peer NAME…] [--again NAME…]

Every tool gets the same model and the same calibration samples; all are judged on samples of other
sources that no tool saw. Tools run one after another, each in its pinned environment, with a time
limit; a tool that fails is a row with its reason. What a tool made is kept in the cache and made
anew with --again. Then everything of one model is measured in one process (`harness`): agreement
with float, size, and CPU time in turn with float, one thread.

Machines differ and are shared: read the load beside a figure, and trust ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.__main__ import machine
from benchmarks.build import ours, table
from benchmarks.build.models import MODELS, Model
from benchmarks.build.peers.catalogue import PEERS
from benchmarks.build.peers.environments import environment
from benchmarks.build.peers.peer import Peer
from benchmarks.build.peers.running import Outcome, run
from benchmarks.build.samples import GROUPS, LABELS, divide, load, spread, take
from edgekit_converters.demo.files import write_arrays

_ROOT = Path(__file__).resolve().parents[2]
_GIVEN_SHARE = 0.5
_CALIBRATION = 128
_HELD_OUT = 300
_LIMIT_S = 1200.0
_CALM = 1.0
_JUDGE = ("onnxruntime==1.31.1", "openvino==2026.4.1", "numpy==2.4.6")


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A model and its samples, divided: what calibrates, what a build may use, what is held out."""

    model: Model
    file: Path
    folder: Path
    calibration: Path
    given: Path
    held_out: Path


def main() -> None:
    given = _arguments()
    cache = given.cache.expanduser().resolve()
    report: dict[str, Any] = {"machine": machine(), "kernel": platform.release(), "models": []}
    for model in (m for m in MODELS if m.name in given.model):
        task = prepare(model, cache)
        rows = [_ours(task, given)] if ours.NAME in given.peer else []
        rows += [_theirs(peer, task, cache, given) for peer in PEERS if peer.name in given.peer]
        if given.make:
            continue
        report["models"].append(judge(task, rows, cache, patience_s=given.patience))
        given.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        given.markdown.write_text(table.markdown(report), "utf-8")
        print(table.one(report["models"][-1]), flush=True)
    if not given.make:
        print(f"written to {given.json} and {given.markdown}")


def prepare(model: Model, cache: Path) -> Task:
    """Fetch a model and divide its samples by whole groups, the same way every time."""
    folder = cache / "compare" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    arrays = load(model.samples(cache))
    given, held_out = divide(arrays[GROUPS], _GIVEN_SHARE)
    inputs = {name: values for name, values in arrays.items() if name not in (GROUPS, LABELS)}
    task = Task(
        model=model,
        file=model.fetch(cache),
        folder=folder,
        calibration=folder / "calibration.npz",
        given=folder / "given.npz",
        held_out=folder / "held-out.npz",
    )
    write_arrays(task.calibration, **take(inputs, spread(given, _CALIBRATION)))
    write_arrays(task.given, **take(arrays, given))
    write_arrays(task.held_out, **take(arrays, spread(held_out, _HELD_OUT)))
    return task


def judge(
    task: Task, rows: Sequence[dict[str, Any]], cache: Path, *, patience_s: float
) -> dict[str, Any]:
    """Measure what the tools left, and put it beside what they took."""
    python = environment(cache, "judge", _JUDGE).python
    request = {
        "model": str(task.file),
        "samples": str(task.held_out),
        "output": task.model.output,
        "agreement": task.model.agreement,
        "artefacts": [
            {"name": row["name"], "engine": row["engine"], "path": row["artefact"]}
            for row in rows
            if not row["failure"]
        ],
    }
    waited_s = calm(patience_s)
    measured = subprocess.run(
        [str(python), "-m", "benchmarks.build.harness"],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(measured.stdout)
    figures = {entry["name"]: entry for entry in found["found"]}
    named = {
        field: getattr(task.model, field) for field in ("name", "family", "package", "licence")
    }
    return {
        **named,
        "data": task.model.data,
        "agreement": task.model.agreement,
        "told": " ".join((*task.model.options, *task.model.recipe.split("\n"))).strip(),
        "held_out": {"samples": found["samples"], "groups": found["groups"]},
        "calibration": len(next(iter(load(task.calibration).values()))),
        "waited_s": round(waited_s),
        "float": figures["float"],
        "tools": [{**row, **figures.get(row["name"], {})} for row in rows],
    }


def calm(patience_s: float) -> float:
    """Wait until the machine has little else to do, or patience ends; seconds waited."""
    started = time.monotonic()
    while os.getloadavg()[0] > _CALM and time.monotonic() - started < patience_s:
        time.sleep(5)
    return time.monotonic() - started


def _ours(task: Task, given: argparse.Namespace) -> dict[str, Any]:
    folder, kept = _folder(task, ours.NAME, again=ours.NAME in given.again)
    if kept is None:
        outcome, chosen = ours.build(
            task.file,
            task.given,
            folder,
            options=task.model.options,
            recipe=task.model.recipe,
            limit_s=_LIMIT_S,
        )
        kept = _keep(folder, outcome, chosen)
    return _row(ours.NAME, ours.how(), "onnxruntime", folder / "model.onnx", kept)


def _theirs(peer: Peer, task: Task, cache: Path, given: argparse.Namespace) -> dict[str, Any]:
    made = environment(cache, peer.environment, peer.requirements)
    folder, kept = _folder(task, peer.name, again=peer.name in given.again)
    artefact = folder / "out" / peer.artefact
    if kept is None:
        outcome = run(
            peer.command_line(made.python, task.file, task.calibration, folder / "out"),
            folder=folder,
            variables={"PYTHONPATH": str(_ROOT)},
            limit_s=_LIMIT_S,
            artefact=artefact,
        )
        kept = _keep(folder, outcome, {})
    installed = {"size_mb": made.size_mb, "seconds": made.install_s, "packages": made.packages}
    row = _row(peer.name, peer.how, peer.engine, artefact, kept)
    return {**row, "install": installed, "pins": peer.requirements}


def _folder(task: Task, name: str, *, again: bool) -> tuple[Path, dict[str, Any] | None]:
    """Where a tool works on a model, and its outcome where it has one already."""
    folder = task.folder / name
    note = folder / "outcome.json"
    if note.is_file() and not again:
        return folder, json.loads(note.read_bytes())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder, None


def _keep(folder: Path, outcome: Outcome, more: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {**msgspec.to_builtins(outcome), **more}
    (folder / "outcome.json").write_text(json.dumps(kept), "utf-8")
    return kept


def _row(name: str, how: str, engine: str, artefact: Path, kept: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "how": how, "engine": engine, "artefact": str(artefact), **kept}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="example: python -m benchmarks.build.compare --model lite0 minilm --again edgekit",
    )
    models = [model.name for model in MODELS]
    tools = [ours.NAME, *(peer.name for peer in PEERS)]
    parser.add_argument("--model", nargs="+", choices=models, default=models)
    parser.add_argument("--peer", nargs="+", choices=tools, default=tools)
    parser.add_argument("--again", nargs="+", choices=tools, default=[], help="make these anew")
    parser.add_argument(
        "--make", action="store_true", help="make what is missing in the cache, measure nothing"
    )
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds to wait for a quiet machine"
    )
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/edgekit/benchmarks"))
    parser.add_argument("--json", type=Path, default=Path("peer-table.json"))
    parser.add_argument("--markdown", type=Path, default=Path("peer-table.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
