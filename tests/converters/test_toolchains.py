"""Tool chains are installed whole or not at all, and say how they stand."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.errors import BuildError, StorageError, ToolChainMissing, UsageError
from edgekit_converters.toolchains import TOOLCHAINS, ToolChain, environments, installation, renew
from tests.converters.tiny_toolchains import NAME, add, tiny, write_lock

LOCKED = [chain for chain in TOOLCHAINS.values() if chain.python is not None]
# Installs the tiny tool chain of the lock that it is given.
INSTALL = """
import sys
from pathlib import Path
from edgekit_converters import toolchains
from edgekit_converters.toolchains import installation
from tests.converters.tiny_toolchains import tiny
toolchains.TOOLCHAINS["tiny"] = tiny(Path(sys.argv[1]))
print(installation.install("tiny", say=lambda text: print(text, file=sys.stderr, flush=True)))
"""

needs_uv = pytest.mark.skipif(
    shutil.which("uv") is None, reason="uv is not on PATH: pip install uv"
)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of the tiny tool chain, which is known and not installed."""
    lock = write_lock(tmp_path / "wheels")
    monkeypatch.setenv("EDGEKIT_TOOLCHAINS", str(tmp_path / "toolchains"))
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    # A version whose content differs from one test to the next must not come out of a cache.
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    add(monkeypatch, tiny(lock))
    return lock


def quietly(_: str) -> None:
    """Where an installation's steps go that nobody reads."""


def run_in(python: Path, code: str) -> str:
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def installing(lock: Path, **variables: str) -> subprocess.Popen[str]:
    """An installation in a process of its own, as a second `edgekit` would run it."""
    return subprocess.Popen(
        [sys.executable, "-c", INSTALL, str(lock)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"it never said {text!r}")


def leftovers() -> list[str]:
    """What lies beside environments, but for lock files."""
    return [p.name for p in environments.home().iterdir() if p.name.startswith(".") and p.is_dir()]


@needs_uv
def test_an_installed_tool_chain_is_ready_and_its_interpreter_has_the_package(lock: Path) -> None:
    assert environments.state(NAME).status == "missing"

    python = installation.install(NAME, say=quietly)

    assert environments.state(NAME).status == "ready"
    assert environments.python_of(NAME) == python
    assert run_in(python, "import inkpot; print(inkpot.VERSION)") == "1.0"
    assert leftovers() == []


@needs_uv
def test_its_scripts_find_their_interpreter_where_the_folder_ends_up(lock: Path) -> None:
    python = installation.install(NAME, say=quietly)

    script = (python.parent / "inkpot").read_text()

    assert "~new-" not in script


@needs_uv
def test_what_is_ready_is_not_installed_again(lock: Path) -> None:
    installation.install(NAME, say=quietly)
    said: list[str] = []

    installation.install(NAME, say=said.append)

    assert said == [f"{NAME}: trying it"]


@needs_uv
def test_a_folder_that_was_never_finished_is_half_installed_and_made_anew(lock: Path) -> None:
    python = installation.install(NAME, say=quietly)
    (environments.home() / NAME / environments.READY).unlink()

    found = environments.state(NAME)
    assert found.status == "half-installed"
    assert found.command == "edgekit doctor --install tiny"
    with pytest.raises(ToolChainMissing, match="never finished") as caught:
        environments.python_of(NAME)
    assert caught.value.hint == "edgekit doctor --install tiny"

    assert installation.install(NAME, say=quietly) == python
    assert environments.state(NAME).status == "ready"


@needs_uv
def test_a_lock_that_has_changed_asks_for_a_new_installation(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.install(NAME, say=quietly)
    before = environments.lock_sha256(NAME)
    write_lock(lock.parent, version="2.0")

    assert environments.state(NAME).status == "wrong version"
    assert environments.lock_sha256(NAME) != before
    python = installation.install(NAME, say=quietly)

    assert run_in(python, "import inkpot; print(inkpot.VERSION)") == "2.0"
    assert leftovers() == []


@needs_uv
def test_an_environment_whose_python_is_gone_says_so(lock: Path) -> None:
    python = installation.install(NAME, say=quietly)
    python.unlink()

    assert environments.state(NAME).status == "python missing"
    assert installation.install(NAME, say=quietly).exists()


@needs_uv
def test_a_file_that_is_not_the_locked_one_is_refused(lock: Path) -> None:
    lock.write_text(f"inkpot==1.0 --hash=sha256:{'0' * 64}\n")

    with pytest.raises(BuildError, match=r"(?s)tiny could not be installed.*[Hh]ash"):
        installation.install(NAME, say=quietly)

    assert environments.state(NAME).status == "missing"
    assert leftovers() == []


@needs_uv
def test_a_failed_installation_leaves_the_environment_that_was_there(lock: Path) -> None:
    python = installation.install(NAME, say=quietly)
    lock.write_text(f"inkpot==1.0 --hash=sha256:{'0' * 64}\n")

    with pytest.raises(BuildError):
        installation.install(NAME, say=quietly)

    assert environments.state(NAME).status == "wrong version"
    assert run_in(python, "import inkpot; print(inkpot.VERSION)") == "1.0"


@needs_uv
def test_a_package_that_cannot_be_imported_is_not_ready(lock: Path) -> None:
    write_lock(lock.parent, code="raise ImportError('libGL.so.1: cannot open shared object file')")

    with pytest.raises(BuildError, match=r"cannot be imported: ImportError: libGL\.so\.1"):
        installation.install(NAME, say=quietly)

    assert environments.state(NAME).status == "missing"


@needs_uv
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_installation_leaves_nothing_that_counts_as_ready(
    lock: Path, number: signal.Signals
) -> None:
    with installing(lock, INKPOT_SLEEPS="3") as process:
        wait_for(process, "trying it")
        process.send_signal(number)
        process.communicate()
    assert process.returncode != 0

    assert environments.state(NAME).status == "missing"
    installation.install(NAME, say=quietly)

    assert environments.state(NAME).status == "ready"
    assert leftovers() == []


@needs_uv
def test_two_installations_at_once_wait_for_each_other(lock: Path) -> None:
    with installing(lock, INKPOT_SLEEPS="1") as first:
        wait_for(first, "trying it")
        with installing(lock) as second:
            wait_for(second, "waiting for another installation")
            answers = [first.communicate()[0], second.communicate()[0]]

    assert (first.returncode, second.returncode) == (0, 0)
    assert answers == [f"{environments.python_of(NAME)}\n"] * 2
    assert leftovers() == []


@needs_uv
def test_removing_a_tool_chain_leaves_nothing_of_it(lock: Path) -> None:
    installation.install(NAME, say=quietly)

    installation.remove(NAME)

    assert environments.state(NAME).status == "missing"
    assert leftovers() == []


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda lock: tiny(lock, size_mb=1 << 40), StorageError, "MB left"),
        (lambda lock: tiny(lock, glibc="2.999"), BuildError, r"needs glibc 2\.999"),
        (lambda lock: tiny(lock, python="3.99"), BuildError, r"needs Python 3\.99"),
    ],
)
@needs_uv
def test_a_machine_that_cannot_hold_it_is_told_before_anything_is_downloaded(
    lock: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], ToolChain],
    error: type[Exception],
    said: str,
) -> None:
    add(monkeypatch, change(lock))

    with pytest.raises(error, match=said):
        installation.install(NAME, say=quietly)

    assert leftovers() == []


@needs_uv
def test_a_python_that_is_missing_comes_with_the_command_that_adds_it(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, tiny(lock, python="3.99"))

    found = environments.state(NAME)

    assert found.status == "python missing"
    assert found.command is not None
    assert found.command.endswith("python install 3.99 && edgekit doctor --install tiny")


def test_without_uv_the_command_that_adds_it_is_named(tmp_path: Path) -> None:
    # An interpreter beside which there is no uv, as pip leaves it.
    folder = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = [path for path in sys.path if path]
    code = (
        f"import sys; sys.path += {packages!r}\n"
        "from edgekit.errors import BuildError\n"
        "from edgekit_converters.toolchains import uv\n"
        "try: uv.command()\n"
        "except BuildError as e: print(e.hint)\n"
    )
    if any((Path(path) / "uv").is_dir() for path in packages):
        pytest.skip("uv is a package of this interpreter")

    done = subprocess.run(
        [str(folder / "bin" / "python"), "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
    )

    assert done.stdout.strip() == f"{folder / 'bin' / 'python'} -m pip install uv"


def test_an_unknown_tool_chain_is_named_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="no tool chain called 'velo'") as caught:
        environments.state("velo")

    assert caught.value.hint is not None
    assert "vela" in caught.value.hint


def test_a_program_counts_where_it_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolChainMissing, match="edgetpu_compiler is not on PATH") as caught:
        environments.python_of("edgetpu")
    assert caught.value.hint == TOOLCHAINS["edgetpu"].note

    program = tmp_path / "edgetpu_compiler"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    assert environments.state("edgetpu").status == "ready"
    assert environments.python_of("edgetpu") == Path(sys.executable)
    assert environments.lock_sha256("edgetpu") == environments.sha256(program)


@pytest.mark.parametrize("chain", LOCKED, ids=lambda chain: str(chain.name))
def test_every_lock_pins_and_hashes_what_its_tool_chain_wants_and_names_no_index(
    chain: ToolChain,
) -> None:
    text = chain.lock_file.read_text()
    pinned = dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", text, re.MULTILINE))
    wanted = re.findall(
        r"^([a-zA-Z0-9][\w.-]*)", chain.lock_file.with_suffix(".in").read_text(), re.MULTILINE
    )

    assert wanted
    assert set(wanted) <= set(pinned)
    assert text.count("==") <= text.count("--hash=sha256:")
    assert "://" not in text
    assert f"python -m {renew.__name__} {chain.name}" in text


def test_a_lock_is_renewed_without_the_settings_of_whoever_renews_it() -> None:
    command = renew.compile_command(TOOLCHAINS["rknn"], upgrade=True)

    assert {"--generate-hashes", "--no-config", "--no-emit-index-url", "--upgrade"} <= set(command)
    assert "--overrides=rknn.overrides" in command


def test_what_was_damaged_since_is_made_again(lock: Path) -> None:
    python = installation.install(NAME, say=quietly)
    (package,) = environments.home().glob(f"{NAME}/lib/python3.*/site-packages/inkpot.py")
    # uv links files to its cache, which is not what was damaged.
    package.unlink()
    package.write_text("raise ImportError('gone')\n")
    said: list[str] = []

    assert installation.install(NAME, say=said.append) == python

    assert any("damaged, so it is made again" in line for line in said)
    assert "gone" not in package.read_text()
