"""`edgekit verify` and `bench`: what a bundle is on this machine."""

from __future__ import annotations

import logging
import math
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgekit import logs, signing
from edgekit.errors import EngineError, GoldenMismatch, UsageError
from edgekit.numbers import FloatRange

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.manifest import Variant

log = logging.getLogger(__name__)

_trust = click.option(
    "--trust",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PUBKEY",
    help="A public key to trust, beside those in the trust folder.",
)
_insecure = click.option(
    "--insecure",
    is_flag=True,
    help="Take bundles that no trusted key signed.",
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_trust
@_json
def verify(bundle: Path, trust: tuple[Path, ...], as_json: bool) -> None:
    """Check a bundle: container, digests, signature, and its golden inputs on this machine.

    A variant whose engine or accelerator is not here is listed as not run, with the reason. Exits
    with 4 for a bundle that is damaged or not trusted, with 5 where golden outputs differ.

    Example: edgekit verify lite0-0.1.0-jetson.edge --trust edgekit.pub
    """
    from edgekit.bundle import Bundle

    logs.configure(json_lines=as_json, level=logging.WARNING)
    with Bundle.open(bundle) as packed, tempfile.TemporaryDirectory() as scratch:
        signer = packed.verify(signing.trusted_keys(trust))
        manifest = packed.manifest
        folder = bundle if bundle.is_dir() else packed.unpack(Path(scratch) / "bundle")
        with Bundle.open(folder) as unpacked:
            found = [_verify_variant(unpacked, variant) for variant in manifest.variants]
    page = {
        "path": str(bundle),
        "name": manifest.name,
        "version": manifest.version,
        "profile": manifest.profile.name,
        "digest": packed.digest,
        "signed_by": signer.id,
        "entries": len(manifest.entries),
        "machine": platform.machine(),
        "variants": found,
    }
    if as_json:
        _print_json(page)
    else:
        click.echo(_verify_text(page))
    differing = [variant for variant in found if variant["status"] == "differs"]
    if differing:
        raise GoldenMismatch(
            f"{differing[0]['name']}: {differing[0]['reason']}",
            hint="do not serve this bundle on this machine",
        )


@click.command()
@click.argument(
    "paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="BUNDLE-OR-MODEL..."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="MODEL",
    help="A .onnx or .tflite model to run beside them.",
)
@click.option("--seconds", default=5.0, show_default=True, help="How long to measure in all.")
@click.option("--runs", default=1000, show_default=True, help="Most runs of each.")
@click.option("--device", metavar="[USER@]HOST[:PORT]", help="Run on this board, over SSH.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="With --device: where NAME-VERSION-PROFILE.bench.json goes.",
)
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="With --out: the bundle goes there too, its figures in the report, signed with this key.",
)
@click.option(
    "--remote-python",
    metavar="PATH",
    help="With --device: a Python there that has the engine; no packages are carried.",
)
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="With --device: wheels to carry, before those of the package index.",
)
@click.option(
    "--ssh-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="With --device: a configuration for ssh, instead of your own.",
)
@click.option(
    "--max-clock-drop",
    type=FloatRange(0, 1),
    metavar="SHARE",
    help="With --device: the run is void if clocks fall by more; default 0.1.",
)
@_trust
@_insecure
@_json
def bench(
    paths: tuple[Path, ...],
    against: tuple[Path, ...],
    seconds: float,
    runs: int,
    trust: tuple[Path, ...],
    insecure: bool,
    as_json: bool,
    **board: Any,
) -> None:
    """Measure bundles, variant by variant, and .onnx or .tflite models, interleaved.

    Bundles run on their first golden input, models on random ones. With --device all of it runs on
    a board, after the golden inputs were reproduced there; what the board needs is carried. Exits
    with 5 where a variant does not reproduce them, or where the board was throttled.

    Example: edgekit bench lite0-0.1.0-raspberry-pi-5.edge --device pi@192.168.1.20 --out figures
    """
    from edgekit_runtime import bench as benches
    from edgekit_runtime.opening import Opened, open_trusted, run_cache

    logs.configure(json_lines=as_json, level=logging.WARNING)
    if not 0 < seconds < math.inf or runs < 1:
        raise UsageError("--seconds must be a number above 0 and --runs at least 1")
    models = [path for path in paths if path.suffix in benches.SUFFIXES] + list(against)
    engines = {path: benches.engine_of(path) for path in models}
    trusted = signing.trusted_keys(trust)

    def opened(path: Path) -> Opened:
        return open_trusted(path, trusted=trusted, insecure=insecure, cache=run_cache())

    bundles = [path for path in paths if path not in engines]
    if board["device"] is not None:
        from edgekit_runtime.board.console import Options, bench_there

        options = Options(seconds=seconds, runs=runs, as_json=as_json, **board)
        bench_there(bundles, engines, opened=opened, options=options)
        return
    if given := [name for name, value in board.items() if value is not None]:
        raise UsageError(f"--{given[0].replace('_', '-')} is for --device, which is missing")
    found: list[benches.Subject | benches.Skipped] = []
    for path in dict.fromkeys((*paths, *against)):
        if path in engines:
            found.append(benches.open_model(path, engine=engines[path], label=path.name))
        else:
            found += benches.open_bundle(opened(path).bundle)
    subjects = [one for one in found if isinstance(one, benches.Subject)]
    skipped = [one for one in found if isinstance(one, benches.Skipped)]
    if not subjects:
        raise EngineError("nothing of this can run here: " + "; ".join(s.reason for s in skipped))
    measured = benches.measure(subjects, seconds=seconds, max_runs=runs)
    if as_json:
        _print_json({"machine": platform.machine(), "results": measured, "skipped": skipped})
    else:
        click.echo(benches.table(measured, skipped))


def _verify_variant(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    from edgekit_runtime.probe import probe
    from edgekit_runtime.serving.opener import open_variant

    facts: dict[str, Any] = {
        "name": variant.name,
        "engine": variant.engine,
        "accelerator": variant.accelerator,
        "precision": variant.precision,
    }
    try:
        session = open_variant(bundle, variant)
    except (EngineError, UsageError) as e:
        return {**facts, "status": "not run", "reason": e.message, "probe": None}
    try:
        result = probe(bundle, variant, session)
    except GoldenMismatch as e:
        return {**facts, "status": "differs", "reason": e.message, "probe": None}
    finally:
        session.close()
    return {**facts, "status": "reproduced", "reason": None, "probe": result}


def _verify_text(page: dict[str, Any]) -> str:
    lines = [
        f"{page['name']} {page['version']} for {page['profile']}: {page['entries']} entries as the"
        " manifest says",
        f"  digest {page['digest']}",
        f"  signed by {page['signed_by'][:16]}…, which is trusted here",
    ]
    for variant in page["variants"]:
        label = f"  variant {variant['name']} ({variant['engine']}, {variant['accelerator']}): "
        result = variant["probe"]
        if result is None:
            lines.append(f"{label}{variant['status']}: {variant['reason']}")
            continue
        worst = max(result.reference_error.values())
        lines.append(
            f"{label}{result.samples} golden inputs reproduced on this {page['machine']}, at most"
            f" {worst:.2g} from the source model, {result.latency_ms:.3g} ms a sample"
        )
    return "\n".join(lines)


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())
