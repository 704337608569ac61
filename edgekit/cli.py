"""The command line. Commands live beside what they do and are imported only when they run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NoReturn

import click

from edgekit import __version__
from edgekit.errors import EdgekitError, UsageError
from edgekit.registry import load
from edgekit.terminal import plain_lines

# name: (where it lives, one line for --help)
COMMANDS: Mapping[str, tuple[str, str]] = {
    "bench": ("edgekit_runtime.commands:bench", "Measure bundles and models, interleaved."),
    "broker": ("edgekit.fleet.commands:broker", "Run the embedded MQTT broker."),
    "build": ("edgekit_converters.commands:build", "Build one signed bundle per profile."),
    "coordinator": ("edgekit.fleet.commands:coordinator", "Run the coordinator and dashboard."),
    "demo": ("edgekit_converters.demo.commands:demo", "Tell the whole story on this machine."),
    "device": ("edgekit_runtime.device:device", "A board's own view: install, enrol, doctor."),
    "doctor": (
        "edgekit_converters.doctor_commands:doctor",
        "Show what this machine can build, run and prove.",
    ),
    "fleet": ("edgekit.fleet.commands:fleet", "Make a fleet, let devices in and out, ask them."),
    "inspect": ("edgekit.inspect:inspect", "Show what a model or a bundle is."),
    "keys": ("edgekit.commands:keys", "Make signing keys."),
    "limits": (
        "edgekit_runtime.capacity.limits_command:limits",
        "Find the highest rate that meets an SLO here.",
    ),
    "plan": (
        "edgekit_runtime.capacity.plan_command:plan",
        "Tell how many streams fit on this machine.",
    ),
    "profiles": (
        "edgekit_converters.profiles_commands:profiles",
        "List, show and check device profiles.",
    ),
    "publish": ("edgekit.fleet.commands:publish", "Put a bundle into the fleet's repository."),
    "rollout": ("edgekit.fleet.commands:rollout", "Create, watch and stop rollouts."),
    "round": ("edgekit.fleet.commands:round_", "Start and watch federated rounds."),
    "run": ("edgekit_runtime.run_command:run", "Serve bundles in the foreground."),
    "verify": ("edgekit_runtime.commands:verify", "Check a bundle and run its golden inputs."),
}

# Libraries that only some commands need: the extra that installs each.
EXTRAS: Mapping[str, str] = {
    **dict.fromkeys(("onnx", "onnxslim", "PIL", "rich", "yaml"), "host"),
    **dict.fromkeys(("onnxruntime", "packaging", "paho", "tomli", "tuf", "zstandard"), "device"),
    **dict.fromkeys(
        ("nats_server", "prometheus_client", "sqlalchemy", "starlette", "uvicorn"), "coordinator"
    ),
}


class Commands(click.Group):
    """A group whose commands are imported by dotted name on use, and listed without import."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        target, _ = COMMANDS[cmd_name]
        return _import(target)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgekit")
def cli() -> None:
    """Take a trained model to edge devices as one signed, measured bundle, and keep it good there.

    Example: edgekit build model.onnx --profile raspberry-pi-5 --data samples/
    """


def main() -> None:
    """Entry point of `edgekit`."""
    _run(cli, prog="edgekit")


def daemon_main() -> None:
    """Entry point of `edgekitd`."""
    _run(_import("edgekit_runtime.device:daemon"), prog="edgekitd")


def _import(target: str) -> click.Command:
    command = load(target)
    assert isinstance(command, click.Command)
    return command


def _run(command: click.Command, *, prog: str) -> None:
    try:
        # Without click's own handling of errors, an exit code comes back as the result.
        result = command.main(prog_name=prog, standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except EdgekitError as e:
        _fail(e)
    except ModuleNotFoundError as e:
        extra = EXTRAS.get((e.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(
            UsageError(
                f"this command needs {e.name}, which is not installed",
                hint=f"pip install 'edgekit-ml[{extra}]'",
            )
        )
    if isinstance(result, int):
        sys.exit(result)


def _fail(error: EdgekitError) -> NoReturn:
    click.echo(f"error: {plain_lines(error.message)}", err=True)
    if error.hint:
        click.echo(f"hint: {plain_lines(error.hint)}", err=True)
    sys.exit(error.exit_code)
