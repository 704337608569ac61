"""Wheelhouse: a folder that a board installs from without internet, every file of it checked.

    OUT/wheels/*.whl         what goes into the board's environment
    OUT/tools/pip-*.whl      what installs it: not every board has pip
    OUT/requirements.txt     each package, its version and the digest of its wheel
    OUT/profile.json         the board's profile, for `edgekit device install` and `doctor`
    OUT/install.sh           makes the environment
    OUT/SHA256SUMS           of all of these

Versions are resolved for the board's Python, machine and C library, not for this machine's; only
wheels are taken, so that nothing is built on a board.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgekit import bundle, storage
from edgekit.errors import UsageError
from edgekit.profile import DeviceProfile
from edgekit.structs import Strict
from edgekit_runtime.board.ship import DISTRIBUTION
from edgekit_runtime.install import profiles, uv, wheels
from edgekit_runtime.install.script import install_script
from edgekit_runtime.install.wheels import Goal, Missing

_REQUIREMENTS, _SUMS, _SCRIPT = "requirements.txt", "SHA256SUMS", "install.sh"
_WHEELS, _TOOLS = "wheels", "tools"
_ONLY_WHEELS = "--only-binary=:all:"


class Wheel(Strict, frozen=True, kw_only=True):
    """One file of the wheelhouse."""

    file: str
    name: str
    version: str
    sha256: str
    size_bytes: int


class Wheelhouse(Strict, frozen=True, kw_only=True):
    """What was collected.

    Attributes:
        target: the board, in one line.
        missing: what the board needs and no index has.
    """

    path: str
    target: str
    wheels: tuple[Wheel, ...]
    missing: tuple[Missing, ...]

    @property
    def size_bytes(self) -> int:
        """Of all wheels."""
        return sum(wheel.size_bytes for wheel in self.wheels)


def collect(goal: Goal, *, profile: DeviceProfile, own: Sequence[Path], out: Path) -> Wheelhouse:
    """Fill `out`, which appears whole or not at all.

    Args:
        own: wheels of the caller's, taken before any other of the same package; one for an engine
            under another name, as onnxruntime-gpu, takes the engine's place.

    Raises:
        UsageError: `out` holds something, or uv is not here.
        LinkError: an index cannot be reached, or has no wheels that fit.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", hint="name a new folder")
    storage.make_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
        folder = Path(scratch) / out.name
        found = _fill(folder, goal, profile=profile, own=own, scratch=Path(scratch))
        if out.exists():
            out.rmdir()
        folder.rename(out)
    storage.sync_folder(out.absolute().parent)
    return Wheelhouse(
        path=str(out),
        target=goal.text,
        wheels=found,
        missing=tuple(_still_missing(goal, own)),
    )


def _fill(
    folder: Path, goal: Goal, *, profile: DeviceProfile, own: Sequence[Path], scratch: Path
) -> tuple[Wheel, ...]:
    links = scratch / "own"
    for made in (folder / _WHEELS, folder / _TOOLS, links):
        storage.make_folder(made)
    for wheel in own:
        shutil.copy(wheel, links)
    if not any(wheels.name_of(wheel)[0] == DISTRIBUTION for wheel in own):
        _build(links)
    pins = _resolve(goal, links, scratch=scratch)
    _download(goal, pins, links, to=folder / _WHEELS, scratch=scratch)
    doing = "downloading pip"
    uv.pip(
        "download",
        "--quiet",
        "--no-deps",
        "pip",
        "-d",
        str(folder / _TOOLS),
        doing=doing,
        folder=scratch,
    )
    found = tuple(_described(path) for path in sorted((folder / _WHEELS).iterdir()))
    (tool,) = (folder / _TOOLS).iterdir()
    texts = {
        _REQUIREMENTS: "".join(
            f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in found
        ),
        profiles.FILE: profiles.encode(profile),
        _SCRIPT: install_script(goal, pip=f"{_TOOLS}/{tool.name}"),
    }
    for name, text in texts.items():
        storage.write(folder / name, text.encode())
    storage.write(folder / _SUMS, "".join(_sums(folder)).encode())
    return found


def _build(links: Path) -> None:
    """Put edgekit's own wheel there, where it runs from its source; else an index has it."""
    source = _source()
    if source is not None:
        arguments = ("build", "--quiet", "--wheel", "--out-dir", str(links.absolute()), str(source))
        uv.run(*arguments, doing="building the wheel of edgekit", folder=links)
        (links / ".gitignore").unlink(missing_ok=True)


def _source() -> Path | None:
    """The folder that this edgekit is installed from; None where it came as a wheel."""
    try:
        told = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        told = None
    document = json.loads(told) if told else {}
    if "dir_info" not in document:
        return None
    folder = Path(unquote(urlsplit(document["url"]).path))
    return folder if (folder / "pyproject.toml").is_file() else None


def _resolve(goal: Goal, links: Path, *, scratch: Path) -> Path:
    """Every package with its version and hashes, for the board rather than for this machine."""
    wanted, overrides, pins = scratch / "wanted.in", scratch / "overrides.in", scratch / "pins.txt"
    own = [path for path in sorted(links.iterdir()) if path.suffix == ".whl"]
    replaced = wheels.replaced_by(own)
    asked = [line for line in goal.requirements if line.partition("==")[0] not in replaced]
    brought = [f"{name}=={version}" for name, version in map(wheels.name_of, own)]
    storage.write(wanted, "".join(f"{line}\n" for line in (*asked, *brought)).encode())
    # A marker that holds nowhere takes a package out.
    never = [f"{name} ; python_version < '3'\n" for name in replaced]
    storage.write(overrides, "".join(never).encode())
    uv.run(
        *("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"),
        *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-build-options", _ONLY_WHEELS),
        *("--python-version", goal.python, "--python-platform", goal.resolver_platform),
        *("--find-links", str(links), "--overrides", str(overrides)),
        *("--output-file", str(pins), str(wanted)),
        doing=f"resolving packages for {goal.text}",
        folder=scratch,
    )
    return pins


def _download(goal: Goal, pins: Path, links: Path, *, to: Path, scratch: Path) -> None:
    uv.pip(
        *("download", "--quiet", "--no-deps", "--require-hashes", _ONLY_WHEELS),
        *("--implementation", "cp", "--python-version", goal.python),
        *(f"--platform={tag}" for tag in goal.platforms),
        *("--find-links", str(links), "--dest", str(to), "--requirement", str(pins)),
        doing=f"downloading wheels for {goal.text}",
        folder=scratch,
    )


def _described(path: Path) -> Wheel:
    name, version = wheels.name_of(path)
    entry = bundle.describe(path)
    return Wheel(
        file=path.name, name=name, version=version, sha256=entry.sha256, size_bytes=entry.size_bytes
    )


def _sums(folder: Path) -> Iterator[str]:
    """Lines that `sha256sum --check` reads."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"{bundle.describe(path).sha256}  {path.relative_to(folder)}\n"


def _still_missing(goal: Goal, own: Sequence[Path]) -> Iterator[Missing]:
    """What is missing and the caller did not bring either."""
    replaced = wheels.replaced_by(own)
    engines = {engine for engine, package in wheels.PACKAGES.items() if package in replaced}
    for missing in goal.missing:
        if missing.what.partition(" ")[0] not in engines:
            yield missing
