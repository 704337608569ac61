"""Ship: what a board needs for a bench, as files named by the sha256 of their content.

Three things travel: the bundle and models themselves; the code of edgekit as it runs here, so that
both sides are one version; and wheels made for the board's architecture, C library and Python,
unpacked, so that a board needs neither internet nor pip. All are kept on the workstation too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Literal

import msgspec

import edgekit
import edgekit_runtime
from edgekit import bundle, storage
from edgekit.errors import EngineNotInstalled, LinkError, StorageError, UsageError
from edgekit.manifest import Manifest
from edgekit.structs import Strict
from edgekit_runtime.board.figures import Board
from edgekit_runtime.install import uv

DISTRIBUTION = "edgekit-ml"
# Engine to its package. Others come with the vendor's system, and --remote-python names a Python
# that has them.
PACKAGES: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "openvino": "openvino",
}
# What uv calls C libraries by their least version (glibc 2.x).
_GLIBC_MINORS = (17, 28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40)
_RESOLVE_TIMEOUT_S = 900


class Piece(Strict, frozen=True, kw_only=True):
    """One thing to carry.

    Attributes:
        kind: a file that is used as it is, or an archive that becomes a folder.
        unpacked_bytes: space that the folder takes; 0 for a file.
    """

    title: str
    kind: Literal["files", "trees"]
    path: Path
    sha256: str
    size_bytes: int
    unpacked_bytes: int = 0


class Packages(Strict, frozen=True, kw_only=True):
    """Packages for one kind of board, in one archive, and the version of each."""

    piece: Piece
    versions: dict[str, str]


def file(path: Path) -> Piece:
    """A bundle or a model."""
    described = bundle.describe(path)
    return Piece(
        title=path.name,
        kind="files",
        path=path,
        sha256=described.sha256,
        size_bytes=described.size_bytes,
    )


def code() -> Piece:
    """The modules of edgekit that a board runs, as they are here."""
    sources: dict[str, Path] = {}
    for package in (edgekit, edgekit_runtime):
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in root.rglob("*.py"):
            name = path.relative_to(root.parent).as_posix()
            if not name.startswith("edgekit/fleet/"):
                sources[name] = path
    return _keep(sources, title=f"edgekit {edgekit.__version__}", folder=_cache() / "code")


def engines_of(manifests: Iterable[Manifest]) -> dict[str, str | None]:
    """Engines that bundles need, each with the version that the profile pins.

    Raises:
        UsageError: an engine comes from elsewhere than PyPI, or two bundles pin different ones.
    """
    found: dict[str, list[str | None]] = {}
    for manifest in manifests:
        for variant in manifest.variants:
            specs = [spec for spec in manifest.profile.engines if spec.name == variant.engine]
            specs.sort(key=lambda spec: spec.accelerator != variant.accelerator)
            spec = specs[0] if specs else None
            version = spec.version if spec else None
            if spec and not spec.wheels.startswith("PyPI"):
                version = f"from {spec.wheels}"
            found.setdefault(variant.engine, []).append(version)
    return {engine: _agreed(engine, versions) for engine, versions in found.items()}


def _agreed(engine: str, versions: Sequence[str | None]) -> str | None:
    """The one version for all variants; a vendor's build runs what needs the index's, too."""
    wanted = list(dict.fromkeys(versions))
    foreign = [version for version in wanted if version is not None and _is_foreign(version)]
    if foreign:
        wanted = [*foreign]
    if len(wanted) > 1:
        names = " and ".join(map(str, wanted))
        raise UsageError(
            f"variants need {engine} {names}, which one Python cannot hold",
            hint="bench them one after the other, or use --remote-python",
        )
    return wanted[0]


def requirements(
    engines: Mapping[str, str | None], *, wheels: Sequence[Path] = ()
) -> tuple[str, ...]:
    """What pip would be given: edgekit's own dependencies, the engines, and the user's wheels.

    Args:
        engines: engine to the version that the profile pins, such as `1.23`; None takes any.
        wheels: the user's own; an engine that one of them brings is not taken from an index.

    Raises:
        UsageError: an engine comes from elsewhere and is not among `wheels`.
    """
    try:
        own = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError as e:
        raise UsageError(
            f"{DISTRIBUTION} is not installed here, so its dependencies are not known",
            hint="install it, or use --remote-python",
        ) from e
    found = [line for line in own if "extra ==" not in line]
    for engine, version in sorted(engines.items()):
        package = PACKAGES.get(engine)
        brought = [w for w in wheels if package and _normal(w.name).startswith(_normal(package))]
        if brought or package is None:
            continue
        if version is not None and _is_foreign(version):
            raise UsageError(
                f"the profile takes {engine} {version}, which this command does not fetch",
                hint="--wheels FOLDER carries your wheels, --remote-python PATH uses what is there",
            )
        found.append(package if version is None else f"{package}=={version}.*")
    return (*found, *(str(wheel.absolute()) for wheel in wheels))


def packages(board: Board, wanted: Sequence[str]) -> Packages:
    """Wheels for a board, resolved once for each kind of board and kept.

    Args:
        board: decides which wheels fit.
        wanted: of `requirements`.

    Raises:
        EngineNotInstalled: no wheels fit, or an index cannot be reached.
        UsageError: uv is not here.
    """
    platform = platform_of(board)
    python = ".".join(board.python.split(".")[:2])
    facts = [edgekit.__version__, platform, python, *map(_identity, wanted)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    note = _cache() / "packages" / f"{key}.json"
    kept = _read_note(note)
    if kept is not None:
        return kept
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        target = Path(scratch)
        _resolve(wanted, platform=platform, python=python, target=target)
        sources, versions = {}, {}
        for path in target.rglob("*"):
            name = path.relative_to(target).as_posix()
            if path.is_file() and not name.startswith(("bin/", ".")):
                sources[name] = path
        for folder in target.glob("*.dist-info"):
            package, _, version = folder.name.removesuffix(".dist-info").partition("-")
            versions[package.replace("_", "-")] = version
        piece = _keep(
            sources, title=f"packages for {platform}, Python {python}", folder=note.parent
        )
    found = Packages(piece=piece, versions=dict(sorted(versions.items())))
    storage.write(note, msgspec.json.encode(found, enc_hook=str))
    return found


def platform_of(board: Board) -> str:
    """The platform of wheels that run on a board, as uv names it.

    Raises:
        EngineNotInstalled: there are none.
    """
    minor = re.fullmatch(r"2\.(\d+)", board.glibc or "")
    fitting = [m for m in _GLIBC_MINORS if minor and m <= int(minor.group(1))]
    if board.architecture not in ("x86_64", "aarch64") or board.bits != 64 or not fitting:
        raise EngineNotInstalled(
            f"no engine has wheels for this board: {board.architecture}, a {board.bits}-bit Python,"
            f" {'glibc ' + board.glibc if board.glibc else 'no glibc'}",
            hint="--remote-python names a Python there that has one",
        )
    if board.implementation != "CPython":
        raise EngineNotInstalled(f"no engine has wheels for {board.implementation}")
    return f"{board.architecture}-manylinux_2_{fitting[-1]}"


def _is_foreign(version: str) -> bool:
    return version.startswith("from ")


def _resolve(wanted: Sequence[str], *, platform: str, python: str, target: Path) -> None:
    command = [
        *(uv.program(), "pip", "install", "--quiet", "--python", sys.executable),
        *("--target", str(target), "--python-version", python, "--python-platform", platform),
        *("--only-binary", ":all:", "--no-compile-bytecode", "--", *wanted),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_RESOLVE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise LinkError(f"uv fetched no wheels within {_RESOLVE_TIMEOUT_S} s") from e
    if done.returncode != 0:
        text = " ".join(re.sub(r"[^\x20-\x7e]+", " ", done.stderr).split())
        raise EngineNotInstalled(
            f"there are no wheels for {platform} and Python {python}: {text[:600]}",
            hint="--wheels FOLDER carries your own, --remote-python PATH uses what is there",
        )


def _keep(sources: Mapping[str, Path], *, title: str, folder: Path) -> Piece:
    """An archive of files by name, the same bytes for the same files, kept by its sha256."""
    storage.make_folder(folder)
    descriptor, name = tempfile.mkstemp(".tmp", dir=folder)
    scratch = Path(name)
    try:
        with open(descriptor, "wb") as raw:
            _archive(sources, raw)
        described = bundle.describe(scratch)
        path = folder / f"{described.sha256}.tar.gz"
        os.replace(scratch, path)
    except OSError as e:
        raise StorageError(f"{folder} cannot be written: {e.strerror}") from e
    finally:
        scratch.unlink(missing_ok=True)
    return Piece(
        title=title,
        kind="trees",
        path=path,
        sha256=described.sha256,
        size_bytes=described.size_bytes,
        # Each file may take a block more than it has bytes.
        unpacked_bytes=sum(source.stat().st_size + 4096 for source in sources.values()),
    )


def _archive(sources: Mapping[str, Path], raw: IO[bytes]) -> None:
    with (
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(sources):
            data = sources[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _read_note(note: Path) -> Packages | None:
    """What was resolved before, while its archive is still whole."""
    try:
        found = msgspec.json.decode(note.read_bytes(), type=Packages, dec_hook=_path)
        whole = bundle.describe(found.piece.path).sha256 == found.piece.sha256
    except (OSError, msgspec.MsgspecError, StorageError):
        return None
    return found if whole else None


def _path(kind: type, value: object) -> object:
    return kind(value)


def _identity(requirement: str) -> str:
    """A requirement; for the user's own wheel its name and content, wherever it lies."""
    path = Path(requirement)
    if path.suffix != ".whl":
        return requirement
    return f"{path.name} {bundle.describe(path).sha256}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _cache() -> Path:
    return storage.cache_home() / "bench"
