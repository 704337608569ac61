"""Commands: `edgekit build`.

Results go to stdout, steps and errors to stderr. Heavy imports wait until a command runs, so that
`--help` stays quick.
"""

from __future__ import annotations

import re
import signal
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgekit import profile as profiles_
from edgekit import recipe as recipe_
from edgekit import signing, storage
from edgekit.errors import (
    EdgekitError,
    GateRefused,
    ManifestError,
    StorageError,
)
from edgekit.manifest import ModelName, Version

if TYPE_CHECKING:
    from edgekit_converters.report import BundleReport

_FILE = click.Path(path_type=Path)
_UNNAMEABLE = re.compile(r"[^a-z0-9._-]+")


class InputShape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """`NAME=1x3x224x224`; `?` or `-1` leaves an axis to the caller."""

    name = "NAME=SHAPE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        name, _, text = str(value).rpartition("=")
        sizes = text.lower().replace("?", "-1").split("x")
        try:
            shape = tuple(int(size) for size in sizes)
        except ValueError:
            shape = ()
        if not name or not shape or any(size < -1 or size == 0 for size in shape):
            self.fail(f"{value!r} is not NAME=SHAPE, such as input=1x3x224x224", param, ctx)
        return name, shape


@click.command()
@click.argument("model", type=_FILE)
@click.option("--profile", "names", multiple=True, required=True, help="A board, by name or file.")
@click.option("--data", type=_FILE, help="Samples: a .npz file or a folder of pictures.")
@click.option("--recipe", "recipe_file", type=_FILE, help="Passes, budget and preprocessing, YAML.")
@click.option(
    "--input", "shapes", type=InputShape(), multiple=True, help="Fix the shape of an input."
)
@click.option(
    "--fix", "constants", metavar="NAME=VALUE", multiple=True, help="Make an input a constant."
)
@click.option(
    "--trust-pickle", is_flag=True, help="Load pickles, which run whatever code is in them."
)
@click.option("--weights", type=_FILE, help="Arrays (.safetensors) in place of the model's.")
@click.option("--base", type=_FILE, help="Earlier bundle: keep its int8 scales where they fit.")
@click.option("--name", help="Name of the model; default from the file's name.")
@click.option("--version", default="0.1.0", show_default=True, help="Semantic version.")
@click.option("--key", type=_FILE, help="Signing key; default this workstation's own.")
@click.option(
    "--out", type=_FILE, default=Path(), show_default="current folder", help="Where bundles go."
)
@click.option(
    "--engine", "engines", multiple=True, help="Only for this engine of the boards, by name."
)
@click.option("--no-cache", is_flag=True, help="Make and measure everything again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def build(
    model: Path,
    names: tuple[str, ...],
    data: Path | None,
    recipe_file: Path | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    constants: tuple[str, ...],
    trust_pickle: bool,
    weights: Path | None,
    base: Path | None,
    name: str | None,
    version: str,
    key: Path | None,
    out: Path,
    engines: tuple[str, ...],
    no_cache: bool,
    as_json: bool,
) -> None:
    """Build one signed, measured bundle of MODEL per profile.

    Example: edgekit build model.onnx --profile raspberry-pi-5 --data samples.npz
    """
    from edgekit_converters import build as building
    from edgekit_converters import grids, report, source
    from edgekit_converters.cache import Cache
    from edgekit_converters.console import Console
    from edgekit_converters.evidence import licences
    from edgekit_converters.measure import Interleaved
    from edgekit_converters.normalise import parse_constant
    from edgekit_converters.summary import Order
    from edgekit_converters.typed import typed
    from edgekit_converters.workshop import Workshop

    boards = [profiles_.find(board) for board in dict.fromkeys(names)]
    recipe = recipe_.Recipe() if recipe_file is None else recipe_.read(recipe_file)
    licences.check(recipe.licences)
    recipe = msgspec.structs.replace(
        recipe, constants={**recipe.constants, **dict(parse_constant(text) for text in constants)}
    )
    signer = signing.own_key() if key is None else signing.SigningKey.read(key)
    order = Order(
        name=_checked_name(name or default_name(model)),
        version=_checked_version(version),
        key=signer,
        out=out,
        command=typed(click.get_current_context()),
    )
    _make_folder(out)
    console = Console(quiet=as_json)
    cache = Cache(None if no_cache else storage.cache_home() / "build")
    cache.trim()
    done: list[BundleReport] = []
    failed: list[tuple[str, EdgekitError]] = []
    with _scratch() as scratch, console.steps() as say:
        say(f"reading {model.name}")
        kept = None if base is None else grids.read(base, scratch=scratch)
        workshop = Workshop(
            source.read(model, weights=weights, trust_pickle=trust_pickle),
            recipe=recipe,
            shapes=dict(shapes),
            data=data,
            scratch=scratch,
            cache=cache,
            grids=kept,
        )
        for board in boards:
            try:
                found = building.build(
                    workshop, board, order, measurer=Interleaved(), say=say, engines=engines
                )
            except EdgekitError as e:
                failed.append((board.name, e))
                continue
            except OSError as e:
                failed.append((board.name, _unwritable(e)))
                continue
            done.append(found)
            if found.gate.outcome == "refused":
                failed.append((board.name, _refusal(found)))
    if as_json:
        document = {
            "bundles": [report.to_builtins(found) for found in done],
            "failed": [
                {"profile": board, "error": e.message, "hint": e.hint, "exit_code": e.exit_code}
                for board, e in failed
            ],
        }
        _print(document)
    else:
        for found in done:
            console.show(found)
    _finish(failed)


def _print(value: object) -> None:
    click.echo(msgspec.json.encode(value).decode())


def default_name(model: Path) -> str:
    """A model's name from its file's: lower case without accents, other characters as dashes."""
    plain = unicodedata.normalize("NFKD", model.stem).encode("ascii", "ignore").decode()
    name = _UNNAMEABLE.sub("-", plain.lower()).strip("-._")[:63]
    return name or "model"


def _checked_name(name: str) -> str:
    try:
        return msgspec.convert(name, ModelName)
    except msgspec.ValidationError as e:
        raise click.BadParameter(
            f"{name!r} must be 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first",
            param_hint="--name",
        ) from e


def _checked_version(version: str) -> str:
    try:
        return Version(version).text
    except ManifestError as e:
        raise click.BadParameter(e.message, param_hint="--version") from e


def _make_folder(folder: Path) -> None:
    """A folder that can be written to: better found out now than after the search."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise StorageError(
            f"folder {folder} cannot be made or written: {e.strerror}",
            hint="give another folder with --out",
        ) from e


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for temporary models, gone at the end, also where SIGTERM brings it about."""
    # What drives builds ends them with SIGTERM: to a build that is Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-build-") as folder:
            yield Path(folder)
    except OSError as e:
        raise _unwritable(e) from e
    finally:
        signal.signal(signal.SIGTERM, before)


def _unwritable(e: OSError) -> StorageError:
    return StorageError(
        f"temporary files cannot be written: {e.strerror or e}",
        hint="free space, or set TMPDIR to a folder that has some",
    )


def _refusal(found: BundleReport) -> GateRefused:
    hint = "raise the limits of budget in the recipe, or choose a smaller model"
    if found.tried and all(tried.size_bytes is None for tried in found.tried):
        hint = "do what the reasons say; edgekit inspect MODEL --profile tells what a board takes"
    return GateRefused(
        f"{found.profile}: the gate refused, no bundle was written:"
        f" {'; '.join(found.gate.reasons)}",
        hint=hint,
    )


def _finish(failed: list[tuple[str, EdgekitError]]) -> None:
    """Report failures, each with its board; the exit code is that of the worst."""
    if not failed:
        return
    *others, (board, worst) = sorted(failed, key=lambda item: item[1].exit_code)
    for name, e in others:
        click.echo(f"error: {_of(name, e)}", err=True)
        if e.hint:
            click.echo(f"hint: {e.hint}", err=True)
    raise type(worst)(_of(board, worst), hint=worst.hint) from worst


def _of(board: str, e: EdgekitError) -> str:
    """What went wrong, with the board that it is about."""
    named = e.message.startswith((f"{board}: ", f"profile {board} "))
    return e.message if named else f"{board}: {e.message}"
