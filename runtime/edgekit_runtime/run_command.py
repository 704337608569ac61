"""`edgekit run`: serve bundles in the foreground, without a fleet."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgekit import logs, signing
from edgekit.errors import UsageError
from edgekit.numbers import FloatRange

if TYPE_CHECKING:
    from edgekit_runtime.serving.address import Address, Tcp
    from edgekit_runtime.serving.models import Models
    from edgekit_runtime.serving.served import Served
    from edgekit_runtime.serving.server import Server
    from edgekit_runtime.serving.settings import Settings
    from edgekit_runtime.serving.tls import Tls

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "127.0.0.1:8500"
_FILE = click.Path(path_type=Path)
_SIZE = click.IntRange(0, 1 << 20)


@click.command()
@click.argument("bundles", type=_FILE, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--listen", metavar="HOST:PORT", help=f"Default {DEFAULT_ADDRESS}; port 0 picks one.")
@click.option("--unix", type=_FILE, metavar="PATH", help="A Unix socket.")
@click.option("--grpc", metavar="HOST:PORT", help="Serve gRPC too (edgekit-ml[grpc]).")
@click.option("--bell", type=_FILE, metavar="PATH", help="A socket for clients in shared memory.")
@click.option(
    "--workers",
    type=click.Choice(["auto", "loop", "thread", "process"]),
    default="auto",
    show_default=True,
    help="Where engines run; auto decides by what a model is and costs.",
)
@click.option(
    "--queue",
    "queue_limit",
    type=click.IntRange(1, 65_536),
    default=64,
    show_default=True,
    help="Requests that may wait for one model; more are answered 429.",
)
@click.option(
    "--memory-mb", type=_SIZE, default=0, help="For all open models together; 0 is no limit."
)
@click.option("--worker-mb", type=_SIZE, default=0, help="For one worker process; 0 is no limit.")
@click.option(
    "--run-limit-s",
    type=FloatRange(0, 3600, min_open=True),
    default=30.0,
    show_default=True,
    help="A run that takes longer is given up, and its worker with it.",
)
@click.option(
    "--cache-mb", type=_SIZE, default=0, help="For answers of each model that come again; 0 is off."
)
@click.option(
    "--ladder/--no-ladder", default=True, help="Let deadlines choose the variant (default), or not."
)
@click.option(
    "--cascade",
    type=FloatRange(0, 1),
    metavar="CONFIDENCE",
    help="Ask the fastest variant first, and the best one where it is less sure than this.",
)
@click.option("--token-file", type=_FILE, metavar="FILE", help="Who may ask from other machines.")
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="The server's certificate (PEM).")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key (PEM).")
@click.option("--tls-client-ca", type=_FILE, metavar="FILE", help="Who issues clients' ones.")
@click.option(
    "--trust",
    type=_FILE,
    multiple=True,
    metavar="PUBKEY",
    help="A public key to trust, beside those in the trust folder.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Take bundles that no trusted key signed, and addresses where strangers can ask.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def run(
    bundles: tuple[Path, ...],
    listen: str | None,
    unix: Path | None,
    trust: tuple[Path, ...],
    insecure: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve bundles over Open Inference Protocol v2 until SIGINT or SIGTERM.

    With --unix and no --listen, only the socket is served. With --json, one line on stdout says
    where the server listens, once it does.

    Example: edgekit run lite0-0.1.0-generic-x86_64.edge --listen 127.0.0.1:8500
    """
    from edgekit_runtime.compiled import Compiled
    from edgekit_runtime.drift_watch import Watch
    from edgekit_runtime.opening import open_trusted, run_cache
    from edgekit_runtime.serving.address import Unix, parse
    from edgekit_runtime.serving.models import Models
    from edgekit_runtime.serving.repository import Installed, Source
    from edgekit_runtime.serving.server import Server, new_event_loop
    from edgekit_runtime.telemetry import log_event

    logs.configure(json_lines=as_json, level=logging.WARNING)
    addresses: list[Address] = [Unix(unix)] if unix else []
    if listen or not unix:
        addresses.insert(0, parse(listen or DEFAULT_ADDRESS))
    compiled = Compiled(run_cache().parent / "compiled")
    models = Models(_settings(options), compiled=compiled)
    sources: list[Source] = []
    server = Server(
        models,
        listen=addresses,
        grpc=_grpc(options["grpc"]),
        bell=options["bell"],
        tokens=options["token_file"],
        tls=_tls(options),
        insecure=insecure,
        repository=Installed(models, lambda: sources),
    )
    trusted = signing.trusted_keys(trust)
    for path in bundles:
        open_again = partial(
            open_trusted, path, trusted=trusted, insecure=insecure, cache=run_cache()
        )
        opened = open_again()
        with opened.bundle as bundle:
            served = models.load(bundle, verified_by=opened.verified_by)
        models.activate(served)
        sources.append(Source(served.name, served.version, open_again))
        if opened.verified_by is None:
            log.warning("runs without a trusted signature, as --insecure asks: %s", path)
        if not as_json:
            click.echo(_text(served))
    watch = Watch(models.drifts, events=log_event)
    watch.start()
    loop = new_event_loop()
    try:
        loop.run_until_complete(_serve(server, models, bell=options["bell"], as_json=as_json))
    finally:
        watch.close()
        models.close()
        compiled.close()
        loop.close()


async def _serve(server: Server, models: Models, *, bell: Path | None, as_json: bool) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await server.start()
    # What was made so far stays: looking through it again and again would cost each request.
    gc.collect()
    gc.freeze()
    where = [str(address) for address in server.addresses]
    if as_json:
        page: dict[str, Any] = {"addresses": where}
        if server.grpc_address is not None:
            page["grpc"] = str(server.grpc_address)
        if bell is not None:
            page["bell"] = str(bell)
        page["models"] = [_facts(served) for served in models.served()]
        click.echo(msgspec.json.encode(page).decode())
    else:
        if server.grpc_address is not None:
            where.append(f"{server.grpc_address} (gRPC)")
        if bell is not None:
            where.append(f"{bell} (shared memory)")
        click.echo(f"serving on {' and '.join(where)}")
        click.echo(f"try: {_curl(where[0], models.served())}")
    await stopped.wait()
    await server.close()


def _settings(options: dict[str, Any]) -> Settings:
    from edgekit_runtime.serving.settings import Settings

    return Settings(
        workers=options["workers"],
        queue_limit=options["queue_limit"],
        memory_bytes=options["memory_mb"] << 20,
        worker_bytes=options["worker_mb"] << 20,
        run_limit_s=options["run_limit_s"],
        cache_bytes=options["cache_mb"] << 20,
        ladder=options["ladder"],
        cascade=options["cascade"],
    )


def _grpc(text: str | None) -> Tcp | None:
    from edgekit_runtime.serving.address import parse

    return None if text is None else parse(text)


def _tls(options: dict[str, Any]) -> Tls | None:
    from edgekit_runtime.serving.tls import Tls

    cert, key, client_ca = (options[f"tls_{name}"] for name in ("cert", "key", "client_ca"))
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise UsageError("TLS needs both --tls-cert and --tls-key")
    return Tls(cert=cert, key=key, client_ca=client_ca)


def _facts(served: Served) -> dict[str, Any]:
    return {
        "name": served.name,
        "version": served.version,
        "digest": served.digest,
        "variant": served.variant.name,
        "variants": [rung.name for rung in served.rungs],
        "engine": f"{served.variant.engine} {served.engine_version}",
        "providers": served.providers,
        "verified_by": served.verified_by,
        "skipped": served.skipped,
        "probe": served.probe,
        "plan": served.plan,
    }


def _text(served: Served) -> str:
    probed, variant = served.probe, served.variant
    errors = probed.reference_error if probed.own_error is None else probed.own_error
    source = "the source model" if probed.own_error is None else "the build"
    lines = [
        f"{served.name} {served.version}: variant {variant.name} ({variant.precision}) on"
        f" {variant.engine} {served.engine_version}, {', '.join(served.providers)}",
        f"  golden inputs: {probed.samples} reproduced, at most {max(errors.values()):.2g} from"
        f" {source}, {probed.latency_ms:.3g} ms a sample",
    ]
    lines += [f"  not variant {name}: {reason}" for name, reason in served.skipped.items()]
    if served.verified_by is None:
        lines.append("  NOT VERIFIED: no trusted key signed it; it runs because of --insecure")
    else:
        lines.append(f"  signed by {served.verified_by[:16]}…")
    return "\n".join(lines)


def _curl(address: str, served: Sequence[Served]) -> str:
    path = f"/v2/models/{served[0].name}"
    if address.startswith("unix:"):
        return f"curl --unix-socket {address.removeprefix('unix:')} http://localhost{path}"
    return f"curl {address}{path}"
