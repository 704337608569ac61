"""`edgekit inspect`: what a bundle or a model is, without running it.

A bundle needs only the base install, so a board can look into what it was sent; a model needs the
converters, which are imported by name and only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from edgekit import signing
from edgekit.bundle import Bundle
from edgekit.errors import BundleError, EdgekitError, ModelError, UntrustedError, UsageError
from edgekit.registry import load

_MODEL = "edgekit_converters.fit:inspect_for"
_ROWS = "edgekit_converters.inspect:rows"
_FIT_ROWS = "edgekit_converters.fit:rows"
_SHAPE = "edgekit_converters.commands:InputShape"
_CONSTANT = "edgekit_converters.normalise:parse_constant"
REPORT = "reports/report.json"
GATE = "reports/gate.json"
_EVIDENCE = ("sbom.cdx.json", "provenance.json", GATE)
# Other zip files are models: a bundle is told by its first entry, whose name ends its header.
_ZIP, _FIRST = b"PK\x03\x04", b"manifest.json"
_LOCAL_HEADER_BYTES = 30


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--input", "shapes", metavar="NAME=SHAPE", multiple=True, help="Fix the shape of an input."
)
@click.option(
    "--fix", "constants", metavar="NAME=VALUE", multiple=True, help="Make an input a constant."
)
@click.option(
    "--trust-pickle", is_flag=True, help="Load pickles, which run whatever code is in them."
)
@click.option("--profile", "profiles", multiple=True, help="Say whether the model fits this board.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(
    path: Path,
    *,
    shapes: tuple[str, ...],
    constants: tuple[str, ...],
    profiles: tuple[str, ...],
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Show what a bundle or a model is; nothing is run.

    Example: edgekit inspect detector.onnx --input images=1x3x320x320 --profile raspberry-pi-5
    """
    if _is_bundle(path):
        if shapes or constants or profiles:
            raise UsageError(
                f"{path} is a bundle, which is for one board and has its shapes",
                hint="--input, --fix and --profile are for models",
            )
        with Bundle.open(path) as bundle:
            facts = bundle_facts(bundle)
        lines = bundle_rows(facts)
    else:
        facts, lines = _model(
            path, shapes=shapes, constants=constants, profiles=profiles, trust_pickle=trust_pickle
        )
    if as_json:
        click.echo(msgspec.json.encode(facts).decode())
        return
    width = max(len(title) for title, _ in lines)
    for title, text in lines:
        click.echo(f"{title:<{width}}  {text}")


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Manifest, digest, signature, and what the build measured and its gate found, where the bundle
    has that."""
    signature = bundle.signature
    facts: dict[str, Any] = {
        "kind": "bundle",
        "path": str(bundle.path),
        "digest": bundle.digest,
        "signature": None
        if signature is None
        else {"key": signature.hint, "trusted": _trust(bundle)},
        "manifest": msgspec.to_builtins(bundle.manifest),
        "evidence": [name for name in _EVIDENCE if name in bundle.names()],
        "report": None,
        "gate": None,
    }
    for fact, entry, kind in (("report", REPORT, _Report), ("gate", GATE, _Gate)):
        if entry in bundle.names():
            facts[fact] = _checked(bundle, entry, kind)
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
    if facts["gate"] is not None:
        found = msgspec.convert(facts["gate"], _Gate).predicate
        lines.append(("gate", _tests(found)))
        lines += [("warned", text) for text in found.warned]
        lines += [("failed", text) for text in found.failed]
    lines += [("evidence", name) for name in facts["evidence"]]
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


class _Predicate(msgspec.Struct, frozen=True):
    """An in-toto test result; names of tests are `VARIANT: what was tested`."""

    result: str
    passed: tuple[str, ...] = msgspec.field(name="passedTests", default=())
    warned: tuple[str, ...] = msgspec.field(name="warnedTests", default=())
    failed: tuple[str, ...] = msgspec.field(name="failedTests", default=())


class _Gate(msgspec.Struct, frozen=True):
    """`reports/gate.json`, as far as it is told here."""

    predicate: _Predicate


def _checked(bundle: Bundle, entry: str, kind: type[_Report] | type[_Gate]) -> Any:
    """A whole document; it may be a stranger's, so it is checked as far as it is read."""
    try:
        found = msgspec.json.decode(bundle.read(entry))
        msgspec.convert(found, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        what = "a report" if kind is _Report else "a test result"
        raise BundleError(f"{bundle.path}: {entry} is not {what}: {e}") from e
    return found


def _tests(found: _Predicate) -> str:
    """The gate's result in one line."""
    counts = (
        (len(found.passed), "passed"),
        (len(found.warned), "not shown by the data"),
        (len(found.failed), "failed"),
    )
    told = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"{found.result.lower()}{f': {told}' if told else ''}"


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
            start = file.read(_LOCAL_HEADER_BYTES + len(_FIRST))
    except OSError as e:
        raise ModelError(
            f"{path} cannot be read: {e.strerror}", hint="name a bundle or a model"
        ) from e
    is_named = start.startswith(_ZIP) and start[_LOCAL_HEADER_BYTES:] == _FIRST
    return path.suffix == ".edge" or is_named


def _model(
    path: Path,
    *,
    shapes: Sequence[str],
    constants: Sequence[str],
    profiles: Sequence[str],
    trust_pickle: bool,
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    try:
        inspect_for: Any = load(_MODEL)
        rows: Any = load(_ROWS)
        fit_rows: Any = load(_FIT_ROWS)
        shape_type: Any = load(_SHAPE)
        parse_constant: Any = load(_CONSTANT)
    except ModuleNotFoundError as e:
        raise EdgekitError(
            f"looking into a model needs {e.name}, which is not installed",
            hint="pip install 'edgekit-ml[host]'",
        ) from e
    facts, fits = inspect_for(
        path,
        profiles=profiles,
        shapes=dict(shape_type().convert(text, None, None) for text in shapes),
        constants=dict(parse_constant(text) for text in constants),
        trust_pickle=trust_pickle,
    )
    found = {"kind": "model", "path": str(path), **msgspec.to_builtins(facts)}
    found["profiles"] = msgspec.to_builtins(fits)
    return found, [*rows(facts), *fit_rows(fits)]
