"""Documents name everything that the code knows: fields, reason codes, commands, links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from edgekit.cli import COMMANDS
from edgekit_runtime.config import Config
from edgekit_runtime.trainer import REFUSAL_MEANING
from edgekit_runtime.update import MEANING

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
DEVICE = (ROOT / "docs" / "device.md").read_text("utf-8")


@pytest.mark.parametrize("meanings", [MEANING, REFUSAL_MEANING])
def test_the_device_page_gives_each_reason_with_its_meaning(meanings: dict[object, str]) -> None:
    for reason, meaning in meanings.items():
        assert f"| `{getattr(reason, 'value', reason)}` | {meaning} |" in DEVICE


def test_the_device_page_gives_each_field_of_the_configuration() -> None:
    for section, hint in get_type_hints(Config).items():
        kind = next(kind for kind in (*get_args(hint), hint) if kind is not type(None))
        assert f"`[{section}]`" in DEVICE
        for field in kind.__struct_fields__:
            assert f"`{field}`" in DEVICE, f"[{section}] {field}"


def test_the_readme_names_each_command() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")

    for command in COMMANDS:
        assert re.search(rf"\bedgekit {command}\b", readme), command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8"))

    for link in links:
        assert (document.parent / link).exists(), link
