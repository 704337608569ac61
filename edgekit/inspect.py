"""`edgekit inspect`: what a bundle or a model is, without running it.

A bundle needs only the base install, so a board can look into what it was sent; a model needs the
converters, which are imported by name and only then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from edgekit import signing
from edgekit.bundle import Bundle
from edgekit.errors import BundleError, EdgekitError, ModelError, UntrustedError
from edgekit.registry import load

_MODEL = "edgekit_converters.inspect:inspect_model"
_ROWS = "edgekit_converters.inspect:rows"
REPORT = "reports/report.json"
_ZIP = b"PK\x03\x04"


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what a bundle or a model is; nothing is run.

    Example: edgekit inspect lite0-0.1.0-jetson.edge
    """
    if _is_bundle(path):
        with Bundle.open(path) as bundle:
            facts = bundle_facts(bundle)
        lines = bundle_rows(facts)
    else:
        facts, lines = _model(path)
    if as_json:
        click.echo(msgspec.json.encode(facts).decode())
        return
    width = max(len(title) for title, _ in lines)
    for title, text in lines:
        click.echo(f"{title:<{width}}  {text}")


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Manifest, digest, signature and what the build measured, where its report is there."""
    signature = bundle.signature
    facts: dict[str, Any] = {
        "kind": "bundle",
        "path": str(bundle.path),
        "digest": bundle.digest,
        "signature": None
        if signature is None
        else {"key": signature.hint, "trusted": _trust(bundle)},
        "manifest": msgspec.to_builtins(bundle.manifest),
        "report": None,
    }
    if REPORT in bundle.names():
        facts["report"] = _report(bundle)
    return facts


def bundle_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person wants to read, line by line."""
    manifest, signature = facts["manifest"], facts["signature"]
    lines = [
        ("bundle", f"{manifest['name']} {manifest['version']} for {manifest['profile']['name']}"),
        ("digest", facts["digest"]),
        ("source", f"sha256:{manifest['model']['source_sha256']}"),
        ("signature", _signature(signature)),
    ]
    for title in ("inputs", "outputs"):
        lines += [(title[:-1], _tensor(spec)) for spec in manifest["model"][title]]
    report = msgspec.convert(facts["report"] or {}, _Report)
    measured = {variant.name: variant for variant in report.variants}
    for variant in manifest["variants"]:
        size = manifest["entries"][variant["artifact"]]["size_bytes"]
        text = f"{variant['name']}: {variant['precision']} in {variant['engine']}"
        text += f" ({variant['accelerator']}), {size / 1e6:.2f} MB"
        lines.append(("variant", text + _measured(measured.get(variant["name"]))))
    lines += [("tool", f"{name} {version}") for name, version in manifest["tools"].items()]
    return lines


class _VariantReport(msgspec.Struct, frozen=True):
    name: str
    evidence: str
    speedup: float | None = None
    agreement: float | None = None


class _Report(msgspec.Struct, frozen=True):
    """`reports/report.json`, as far as it is told here."""

    variants: tuple[_VariantReport, ...] = ()


def _report(bundle: Bundle) -> Any:
    """The whole report; it may be a stranger's, so it is checked as far as it is read."""
    try:
        found = msgspec.json.decode(bundle.read(REPORT))
        msgspec.convert(found, _Report)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise BundleError(f"{bundle.path}: {REPORT} is not a report: {e}") from e
    return found


def _tensor(spec: dict[str, Any]) -> str:
    return f"{spec['name']} {spec['datatype']} {list(spec['shape'])}"


def _measured(variant: _VariantReport | None) -> str:
    if variant is None:
        return ""
    text = f", {variant.evidence}"
    if variant.speedup is not None:
        text += f", {variant.speedup:.2f}x float"
    if variant.agreement is not None:
        text += f", agreement {variant.agreement:.3f}"
    return text


def _signature(signature: dict[str, Any] | None) -> str:
    if signature is None:
        return "none"
    trust = "trusted here" if signature["trusted"] else "not trusted here"
    return f"key {signature['key'][:16]}…, {trust}"


def _trust(bundle: Bundle) -> bool:
    try:
        bundle.verify(signing.trusted_keys())
    except UntrustedError:
        return False
    return True


def _is_bundle(path: Path) -> bool:
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            return path.suffix == ".edge" or file.read(len(_ZIP)) == _ZIP
    except OSError as e:
        raise ModelError(
            f"{path} cannot be read: {e.strerror}", hint="name a bundle or a model"
        ) from e


def _model(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    try:
        inspect_model: Any = load(_MODEL)
        rows: Any = load(_ROWS)
    except ModuleNotFoundError as e:
        raise EdgekitError(
            f"looking into a model needs {e.name}, which is not installed",
            hint="pip install 'edgekit-ml[host]'",
        ) from e
    facts = inspect_model(path)
    return {"kind": "model", "path": str(path), **msgspec.to_builtins(facts)}, list(rows(facts))
