"""OpenSSF's model_signing accepts our unpacked bundles, and its signatures are good for us."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgekit.bundle import SIGNATURE, Bundle
from edgekit.signing import PublicKey, SigningKey
from tests.contract import samples

PYTHON = Path(__file__).parents[2] / ".venv-signing" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="needs model-signing in .venv-signing: `make test` makes it"
    ),
]


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(PYTHON), "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture
def public(tmp_path: Path, key: SigningKey) -> Path:
    path = tmp_path / "edgekit.pub"
    path.write_bytes(key.public.pem)
    return path


def verify(folder: Path, public: Path) -> subprocess.CompletedProcess[str]:
    signature = folder / SIGNATURE
    return model_signing("verify", "key", folder, "--signature", signature, "--public_key", public)


def test_our_bundle_is_accepted(folder: Path, public: Path) -> None:
    done = verify(folder, public)

    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout


@pytest.mark.parametrize("name", [samples.ARTIFACT, "manifest.json", "reports/report.json", "new"])
def test_our_bundle_with_a_change_is_refused(folder: Path, public: Path, name: str) -> None:
    (folder / name).write_bytes(b"changed")

    assert verify(folder, public).returncode != 0


def test_our_bundle_is_refused_with_another_key(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pub"
    other.write_bytes(SigningKey.generate().public.pem)

    assert verify(folder, other).returncode != 0


def test_we_accept_a_bundle_that_model_signing_signed(
    folder: Path, public: Path, tmp_path: Path, key: SigningKey
) -> None:
    private = tmp_path / "edgekit.key"
    private.write_bytes(key.pem())
    (folder / SIGNATURE).unlink()

    done = model_signing(
        "sign", "key", folder, "--private_key", private, "--signature", folder / SIGNATURE,
        "--no-ignore-git-paths",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    with Bundle.open(folder) as opened:
        opened.verify([PublicKey.read(public)])
