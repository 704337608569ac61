"""`edgekit device enroll`: makes this board a member of a fleet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from edgekit.errors import ConfigError, UsageError
from edgekit_runtime.config import DEFAULT_PATH


@click.command()
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="File that holds the token; - reads it from standard input.",
)
@click.option("--token", "text", help="The token; others on this board can read it meanwhile.")
@click.option("--coordinator", "url", required=True, help="URL at which the fleet enrols.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="PEM: authorities to trust beside the system's, for a coordinator over https; kept.",
)
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_PATH,
    show_default=True,
    help="The device's configuration: its name, and where the identity goes.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="State folder, in place of a configuration; the token then says who this is.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def enroll(
    token_file: Path | None,
    text: str | None,
    url: str,
    ca: Path | None,
    path: Path,
    state: Path | None,
    as_json: bool,
) -> None:
    """Make a key on this board and get a certificate for it, once for each token.

    The key never leaves the board, and the token's secret is not sent. Where the answer was lost,
    the same command asks for it again. An identity that is there already is replaced.

    Example: edgekit device enroll --token-file cam-1.token --coordinator http://fleet.lan:8601
    """
    from edgekit.clock import SystemClock
    from edgekit.enrolment import Token
    from edgekit_runtime.identity.enrol import enroll as enroll_device

    token = Token.parse(_token_text(token_file, text))
    folder, name, is_named = _place(path, state)
    identity = enroll_device(folder, token, coordinator=url, name=name, clock=SystemClock(), ca=ca)
    found = {
        "device": identity.name,
        "identity": str(folder),
        "broker": identity.broker,
        "repositories": list(identity.repositories),
        "expires_at_ms": identity.expires_at_ms,
    }
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{identity.name} is enrolled; its identity is in {folder}")
    if not is_named:
        click.echo(f'write this into the configuration: [fleet] identity = "{folder}"')


def _token_text(file: Path | None, text: str | None) -> str:
    from edgekit.enrolment import MAX_TOKEN_BYTES, Token

    if (file is None) == (text is None):
        raise UsageError("give the token by --token-file, or by --token")
    if text is not None:
        return text
    if str(file) == "-":
        return sys.stdin.read(MAX_TOKEN_BYTES)
    assert file is not None
    try:
        with file.open("r", encoding="ascii", errors="replace") as opened:
            found = opened.read(MAX_TOKEN_BYTES)
        Token.parse(found)
    except OSError as e:
        raise UsageError(f"token file {file} cannot be read: {e.strerror}") from e
    except UsageError as e:
        raise UsageError(f"{file}: {e.message}", hint=e.hint) from e
    return found


def _place(path: Path, state: Path | None) -> tuple[Path, str | None, bool]:
    """Where the identity goes, who this board is, and whether its configuration names it."""
    from edgekit_runtime import config

    if state is not None:
        return state / "identity", None, False
    settings = config.read(path)
    fleet = settings.fleet
    if fleet is not None and fleet.insecure:
        raise ConfigError(
            f"{path}: [fleet] says insecure, so there is no identity to get",
            hint='write identity = "FOLDER" in place of insecure',
        )
    own = fleet.identity if fleet is not None else None
    folder = own or settings.state.folder / "identity"
    return folder, f"{settings.device.site}/{settings.device.id}", own is not None
