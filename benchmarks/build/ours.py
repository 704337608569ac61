"""`edgekit build` in the peer table: the command as a user types it, and the default of its bundle.

The build gets the samples that the peers calibrate on and the rest of the share that is not held
out, in one file, and divides it by itself. What is judged is the first variant of the bundle: what
a board would serve. Where the build's gate leaves float in that place, float is judged.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.build.peers.running import STDOUT, Outcome, run
from edgekit.bundle import Bundle

NAME = "edgekit"
_START = "from edgekit.cli import main; main()"


def how() -> str:
    """The command line, for the table."""
    return f"edgekit build MODEL --profile generic-{platform.machine()} --data SAMPLES.npz"


def build(
    model: Path,
    samples: Path,
    folder: Path,
    *,
    options: tuple[str, ...],
    recipe: str,
    limit_s: float,
) -> tuple[Outcome, dict[str, Any]]:
    """Build in `folder`; leaves `model.onnx`, the artefact of the default variant.

    Args:
        recipe: in YAML; empty for none.

    Returns:
        How the command ended, and which variant and scheme it chose.
    """
    command = [
        *(sys.executable, "-c", _START, "build", str(model)),
        *("--profile", f"generic-{platform.machine()}", "--data", str(samples)),
        *("--out", str(folder), "--json", *options),
    ]
    if recipe:
        file = folder / "recipe.yaml"
        file.write_text(recipe, "utf-8")
        command += ["--recipe", str(file)]
    # A build keeps trials; a figure of the second run would not be that of the first.
    variables = {"XDG_CACHE_HOME": str(folder / "cache")}
    outcome = run(command, folder=folder, variables=variables, limit_s=limit_s)
    if outcome.failure:
        return outcome, {}
    (found,) = json.loads((folder / STDOUT).read_bytes())["bundles"]
    with Bundle.open(Path(found["path"])) as bundle:
        default = bundle.manifest.variants[0]
        with Bundle.open(bundle.unpack(folder / "unpacked")) as unpacked:
            shutil.copyfile(unpacked.artifact(default), folder / "model.onnx")
    best = found["variants"][0]
    kept = ("name", "scheme", "precision", "speedup", "agreement")
    chosen = {key: best[key] for key in kept if key in best}
    return outcome, {"chosen": chosen, "gate": found.get("gate", {}).get("outcome")}
