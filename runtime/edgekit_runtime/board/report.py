"""Report: where the figures of a board go, a file beside the bundle and, signed, into the bundle.

What was measured lies in `reports/`, which the signature covers and the digest does not. So a
bundle takes in a board's figures under a new signature and keeps its digest: it is the same bundle,
and what is known of it has grown. Only figures that are the profile's board's own get in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from edgekit import bundle, container, signing, storage
from edgekit.bundle import MANIFEST, REPORTS, SIGNATURE, Bundle
from edgekit.errors import BundleError, EngineError, IntegrityError, UsageError
from edgekit.inspect import REPORT
from edgekit.manifest import Manifest
from edgekit.signing import SigningKey
from edgekit_runtime.bench import Measured
from edgekit_runtime.board.figures import BoardBench

BOARD = f"{REPORTS}board.json"
PAGE = f"{REPORTS}report.html"
_SECTION = re.compile(r'<section id="board">.*?</section>', re.DOTALL)


def encode(found: BoardBench) -> bytes:
    """The document, indented for people."""
    return msgspec.json.format(msgspec.json.encode(found), indent=1)


def stem(manifest: Manifest) -> str:
    """Name of a bundle's files without their suffix."""
    return f"{manifest.name}-{manifest.version}-{manifest.profile.name}"


def write(found: BoardBench, manifest: Manifest, folder: Path) -> Path:
    """Write `NAME-VERSION-PROFILE.bench.json` into a folder, and return its path."""
    path = folder / f"{stem(manifest)}.bench.json"
    storage.write(path, encode(found))
    return path


def check_valid(found: BoardBench) -> None:
    """Raise `EngineError` where the run is void."""
    if found.void:
        raise EngineError(
            f"the run is void: {'; '.join(found.void)}",
            hint="let the board cool, check its supply and power mode, and run it again",
        )


def check_fit(found: BoardBench) -> None:
    """Whether figures may go into a report.

    Raises:
        EngineError: the run is void.
        UsageError: it ran on another board than the profile's.
    """
    check_valid(found)
    if found.mismatches:
        raise UsageError(
            f"not the board of this bundle: {'; '.join(found.mismatches)}",
            hint="figures of another board do not go into the report; leave --sign-key out",
        )


def sign_into(opened: Bundle, found: BoardBench, *, key: SigningKey, folder: Path) -> Path:
    """Write the bundle with a board's figures in its reports, signed anew; the digest stays.

    Args:
        opened: the bundle as it was trusted and run, unpacked.
        found: its figures.
        key: who signs.
        folder: where `NAME-VERSION-PROFILE.edge` goes; a file of that name is replaced.
    """
    check_fit(found)
    entries: dict[str, bytes | Path] = {
        name: opened.path / name for name in opened.names() if name != SIGNATURE
    }
    entries[MANIFEST] = opened.read(MANIFEST)
    names = opened.names()
    if REPORT in names:
        entries[REPORT] = _into_report(opened.read(REPORT), opened.manifest, found)
    if PAGE in names:
        entries[PAGE] = _into_page(opened.read(PAGE), found)
    entries[BOARD] = encode(found)
    digests = {name: _sha256(source) for name, source in entries.items()}
    # What is signed is what was opened and ran, not what lies there by now.
    changed = [name for name, was in opened.manifest.entries.items() if digests[name] != was.sha256]
    if changed or f"sha256:{digests[MANIFEST]}" != opened.digest:
        raise IntegrityError(f"{opened.path}: {[*changed, MANIFEST][0]} changed meanwhile")
    title = stem(opened.manifest)
    path = folder / f"{title}.edge"
    container.save(path, {**entries, SIGNATURE: signing.sign(title, digests, key)})
    return path


def speedups(found: BoardBench, manifest: Manifest) -> dict[str, float]:
    """Variant to its speed against float's in the same run, where the bundle has a float one."""
    measured = _by_variant(found, manifest)
    result = {}
    for variant in manifest.variants:
        own = measured.get(variant.name)
        parents = [
            measured[other.name]
            for other in manifest.variants
            if other.precision == "fp32"
            and (other.engine, other.accelerator) == (variant.engine, variant.accelerator)
            and other.name in measured
        ]
        if own is not None and parents:
            result[variant.name] = parents[0].p50_ms / own.p50_ms
    return result


def _into_report(raw: bytes, manifest: Manifest, found: BoardBench) -> bytes:
    """`report.json` with the latency of each variant that ran, and a note where it is from."""
    try:
        tree: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        variants: list[dict[str, Any]] = msgspec.convert(tree["variants"], list[dict[str, Any]])
        notes = msgspec.convert(tree.get("notes", []), list[str])
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError) as e:
        raise BundleError(f"{REPORT} is not a report of a build: {e}") from e
    measured, ratios = _by_variant(found, manifest), speedups(found, manifest)
    for variant in variants:
        name = variant.get("name", "")
        if name not in measured:
            continue
        one = measured[name]
        evidence = variant.get("figure_evidence")
        variant |= {
            "latency_ms": {"p50": one.p50_ms, "p99": one.p99_ms},
            "speedup": ratios.get(name),
            "speedup_quartiles": None,
            "evidence": found.evidence,
            "figure_evidence": {
                **(evidence if isinstance(evidence, dict) else {}),
                "latency_ms": found.evidence,
            },
        }
    kept = [note for note in notes if not note.startswith(_NOTE)]
    return msgspec.json.format(
        msgspec.json.encode({**tree, "variants": variants, "notes": [*kept, _note(found)]}),
        indent=1,
    )


_NOTE = "latencies were measured on the board"


def _note(found: BoardBench) -> str:
    return f"{_NOTE} ({found.board.title}) at {found.at}: {BOARD}"


def _into_page(raw: bytes, found: BoardBench) -> bytes:
    """The HTML report with one more section before its end."""
    text = _SECTION.sub("", raw.decode("utf-8", "replace"))
    before, end, after = text.rpartition("</main>")
    if not end:
        raise BundleError(f"{PAGE} is not a report of a build: it has no </main>")
    return f"{before}{_section(found)}{end}{after}".encode()


def _section(found: BoardBench) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("", "p50", "p90", "p99", "runs/s", "CPU a run", "memory")
    )
    rows = "".join(
        f"<tr><td>{escape(one.label)}</td><td>{one.p50_ms:.3f} ms</td><td>{one.p90_ms:.3f} ms</td>"
        f"<td>{one.p99_ms:.3f} ms</td><td>{one.per_second:.1f}</td><td>{one.cpu_ms:.3f} ms</td>"
        f"<td>{one.memory_mb:.1f} MB</td></tr>"
        for one in found.results
    )
    skipped = "".join(
        f"<p>{escape(one.label)} did not run: {escape(one.reason)}</p>" for one in found.skipped
    )
    return (
        '<section id="board"><h2>On the board</h2>'
        f"<p>Executed on {escape(found.board.title)} at {escape(found.at)}, interleaved, after the"
        " golden inputs were reproduced there. Where a latency above is missing or differs, this"
        f" one is the newer.</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"{skipped}</section>"
    )


def _by_variant(found: BoardBench, manifest: Manifest) -> Mapping[str, Measured]:
    by_name = {one.variant: one for one in found.results}
    return {
        variant.name: by_name[variant.name]
        for variant in manifest.variants
        if variant.name in by_name
    }


def _sha256(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return bundle.describe(source).sha256
