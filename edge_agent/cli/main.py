"""`karvon agent`: what an installer and a field technician do on the controller.

Exit codes: 0 all well, 1 something is wrong with the charger or the agent, 2 wrong usage or
configuration, 3 not reachable (agent, cloud, device). Every command but `run` takes `--json`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

FAILED, WRONG, UNREACHABLE = 1, 2, 3
DEFAULT = "/etc/karvon/agent.toml"

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

ConfigOption = Annotated[
    Path, typer.Option("--config", envvar="KARVON_AGENT_CONFIG", help="The agent's TOML file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
EvseOption = Annotated[int | None, typer.Option("--evse", min=1, help="The EVSE that is meant.")]
LanguageOption = Annotated[
    str | None, typer.Option("--lang", help="uz, ru, en or de; else as LANG says.")
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]
BeforeOption = Annotated[
    int | None, typer.Option("--before", help="Go on before this session number.")
]


def _start_logging(*, quiet: bool = False) -> None:
    level = os.environ.get("KARVON_LOG", "WARNING" if quiet else "INFO").upper()
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


@app.command()
def run(config: ConfigOption = Path(DEFAULT)) -> None:
    """Run the agent until it is told to end (SIGTERM)."""
    from edge_agent.cli import service

    _start_logging()
    raise typer.Exit(service.run(config))


@app.command()
def update(
    config: ConfigOption = Path(DEFAULT),
    folder: Annotated[
        Path | None, typer.Option("--from", help="A stick's folder, with ota/ in it.")
    ] = None,
    root: Annotated[
        Path, typer.Option("--root", envvar="KARVON_ROOT", help="The folder of the slots.")
    ] = Path("/opt/karvon"),
    first: Annotated[
        bool, typer.Option("--first", help="Make it this controller's first: the factory slot.")
    ] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="End the update that is under way instead.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for a new version in the cloud, or install one from a folder: same keys, same checks."""
    from edge_agent.cli import updating

    if abort:
        raise typer.Exit(asyncio.run(updating.abort(config, as_json=as_json)))
    asked = updating.Asked(folder=folder, root=root, first=first)
    raise typer.Exit(asyncio.run(updating.update(config, asked, as_json=as_json)))


@app.command()
def selftest(
    config: Annotated[
        Path | None, typer.Option("--config", help="It must be able to read it.")
    ] = None,
) -> None:
    """Tell whether this version could run here; asked of every new one before it starts."""
    from edge_agent.cli import service

    raise typer.Exit(service.selftest(config))


@app.command()
def check(config: ConfigOption = Path(DEFAULT), as_json: JsonOption = False) -> None:
    """Check configuration, profiles, journal folder, devices and broker; writes nothing."""
    from edge_agent.cli import checking

    raise typer.Exit(asyncio.run(checking.check(config, as_json=as_json)))


@app.command()
def status(config: ConfigOption = Path(DEFAULT), as_json: JsonOption = False) -> None:
    """Show how the agent and its EVSEs are, or what the journal knows while it does not run."""
    from edge_agent.cli import looking

    raise typer.Exit(asyncio.run(looking.status(config, as_json=as_json)))


@app.command()
def sessions(
    config: ConfigOption = Path(DEFAULT),
    limit: LimitOption = 20,
    before: BeforeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List charging sessions, newest first, and whether the cloud has them."""
    from edge_agent.cli import looking

    raise typer.Exit(looking.sessions(config, limit, before, as_json=as_json))


@app.command()
def queue(
    config: ConfigOption = Path(DEFAULT),
    retry: Annotated[
        bool, typer.Option("--retry", help="Offer once more what an OCPP backend has refused.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what waits for the cloud or the OCPP backend, and what that has refused."""
    from edge_agent.cli import looking

    if retry:
        raise typer.Exit(asyncio.run(looking.retry(config, as_json=as_json)))
    raise typer.Exit(looking.queue(config, as_json=as_json))


@app.command()
def read(config: ConfigOption = Path(DEFAULT), as_json: JsonOption = False) -> None:
    """Read every register of every device: raw, decoded, with its unit."""
    from edge_agent.cli import looking

    raise typer.Exit(asyncio.run(looking.read(config, as_json=as_json)))


@app.command()
def watch(config: ConfigOption = Path(DEFAULT), as_json: JsonOption = False) -> None:
    """Watch the readings live until interrupted."""
    from edge_agent.cli import looking

    try:
        code = asyncio.run(looking.watch(config, as_json=as_json))
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)


@app.command()
def write(
    board: Annotated[str, typer.Argument(help="The board's name in the configuration.")],
    field: Annotated[
        str, typer.Argument(help="limit, failsafe_timeout, failsafe_fallback, or its register.")
    ],
    value: Annotated[int, typer.Argument(help="In mA or s; a limit of 0 pauses the vehicle.")],
    config: ConfigOption = Path(DEFAULT),
    evse: EvseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would go out.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write what a board's profile allows: shown in hex, confirmed, read back, compared."""
    from edge_agent.cli import writing

    asked = writing.Asked(board=board, field=field, value=value, evse=evse, yes=yes, dry=dry_run)
    raise typer.Exit(writing.write(config, asked, as_json=as_json))


@app.command()
def sniff(
    port: Annotated[Path, typer.Argument(help="The serial adapter to listen on.")],
    config: ConfigOption = Path(DEFAULT),
    profile: Annotated[
        str | None, typer.Option("--profile", help="Names registers; else as the configuration.")
    ] = None,
    baudrate: Annotated[int | None, typer.Option("--baudrate", min=300)] = None,
    parity: Annotated[str | None, typer.Option("--parity", help="none, even or odd")] = None,
    stopbits: Annotated[int | None, typer.Option("--stopbits", min=1, max=2)] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="End after so many.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Listen on a serial line and tell what others say on it, until interrupted; sends nothing."""
    from edge_agent.cli import sniffing

    asked = sniffing.Asked(
        port=port,
        profile=profile,
        baudrate=baudrate,
        parity=parity,
        stopbits=stopbits,
        frames=frames,
    )
    raise typer.Exit(sniffing.sniff(config, asked, as_json=as_json))


@app.command()
def bundle(
    file: Annotated[Path, typer.Argument(help="The .tar.gz to make; it must not exist yet.")],
    config: ConfigOption = Path(DEFAULT),
    as_json: JsonOption = False,
) -> None:
    """Pack what somebody needs who helps from afar; secrets are taken out."""
    from edge_agent.cli import bundling

    raise typer.Exit(bundling.bundle(config, file, as_json=as_json))


@app.command()
def view(config: ConfigOption = Path(DEFAULT), lang: LanguageOption = None) -> None:
    """Look at everything live in this terminal: links, EVSEs, registers, sessions, log."""
    from edge_agent.cli.output import complain
    from edge_agent.wording import language_of

    try:
        from edge_agent.cli import viewing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        text = "view needs the package 'textual'; install it with: pip install 'karvon[edge]'"
        raise typer.Exit(complain(text, UNREACHABLE)) from None
    raise typer.Exit(viewing.view(config, lang or language_of(os.environ)))


@app.command()
def token(
    value: Annotated[str, typer.Argument(help="The id token, as the card reader shows it.")],
    config: ConfigOption = Path(DEFAULT),
    kind: Annotated[str, typer.Option("--type", help="OCPP id token type.")] = "ISO14443",
    evse: EvseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Present an id token, as if a card were held to the reader: starts or stops a session."""
    from edge_agent.cli import looking

    raise typer.Exit(asyncio.run(looking.token(config, value, kind, evse, as_json=as_json)))


@app.command()
def recover(
    config: ConfigOption = Path(DEFAULT), evse: EvseOption = None, as_json: JsonOption = False
) -> None:
    """Confirm that a fault was looked at: put an EVSE that is out of service back into it."""
    from edge_agent.cli import looking

    raise typer.Exit(asyncio.run(looking.recover(config, evse, as_json=as_json)))


@app.command()
def claim(
    cloud: Annotated[str, typer.Option("--cloud", help="The cloud's address, https://...")],
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            help="This station's single-use code; without one the cloud may put it on a list.",
        ),
    ] = None,
    config: ConfigOption = Path(DEFAULT),
    as_json: JsonOption = False,
) -> None:
    """Claim this controller's station in the cloud and store its credentials."""
    from edge_agent.cli import claiming

    raise typer.Exit(claiming.claim(config, cloud, code, as_json=as_json))


@app.command()
def commission(
    config: ConfigOption = Path(DEFAULT),
    station: Annotated[
        str | None, typer.Option("--station", help="The station's identity, as in the cloud.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option("--journal", help="The journal's folder; else as configured.")
    ] = None,
    port: Annotated[
        list[str] | None, typer.Option("--port", help="A serial adapter to scan; repeatable.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Scan 192.0.2.10, 192.0.2.10-20 or a network; repeatable."),
    ] = None,
    tcp_port: Annotated[int, typer.Option("--tcp-port", min=1, max=65_535)] = 502,
    unit: Annotated[
        list[int] | None,
        typer.Option("--unit", min=0, max=255, help="Units to ask; else the profiles' usual."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="Look for these devices only; repeatable."),
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(
            "--use", help="[NAME=]PROFILE[+OPTION]@ADDRESS[#EVSES] instead of a scan; repeatable."
        ),
    ] = None,
    failsafe_timeout: Annotated[
        int | None, typer.Option("--failsafe-timeout", help="Seconds without the agent.")
    ] = None,
    failsafe_current: Annotated[
        str | None, typer.Option("--failsafe-current", help="What a charger then gives: 6, 0.")
    ] = None,
    fuse: Annotated[
        str | None, typer.Option("--fuse", help="The main fuse: 63, or 63/63/50 per line.")
    ] = None,
    connector_max: Annotated[
        list[str] | None,
        typer.Option("--connector-max", help="16, or BOARD=16; the cable's most; repeatable."),
    ] = None,
    rotation: Annotated[
        list[str] | None,
        typer.Option("--rotation", help="RST, or BOARD=STR: how it is wired; repeatable."),
    ] = None,
    cloud: Annotated[
        str | None, typer.Option("--cloud", help="The cloud's address, https://...")
    ] = None,
    code: Annotated[str | None, typer.Option("--code", help="The single-use claim code.")] = None,
    ocpp_url: Annotated[
        str | None, typer.Option("--ocpp-url", help="An OCPP backend: ws://... or wss://...")
    ] = None,
    ocpp_version: Annotated[str | None, typer.Option("--ocpp-version", help="1.6 or 2.0.1")] = None,
    ocpp_identity: Annotated[
        str | None, typer.Option("--ocpp-identity", help="Else the station's.")
    ] = None,
    ocpp_profile: Annotated[
        int | None, typer.Option("--ocpp-profile", min=0, max=3, help="OCPP security profile.")
    ] = None,
    ocpp_password: Annotated[
        Path | None, typer.Option("--ocpp-password-file", help="A file with the password.")
    ] = None,
    ocpp_ca: Annotated[
        Path | None, typer.Option("--ocpp-ca", help="The backend's authority, PEM.")
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="No cloud and no backend.")] = False,
    charge: Annotated[
        bool | None, typer.Option("--charge/--no-charge", help="A test charge with a vehicle.")
    ] = None,
    charge_s: Annotated[
        int, typer.Option("--charge-seconds", min=1, max=3600, help="Since current flows.")
    ] = 60,
    wait_s: Annotated[
        int, typer.Option("--wait", min=1, max=3600, help="Seconds for a vehicle to be plugged in.")
    ] = 120,
    evse: EvseOption = None,
    sticker: Annotated[
        str | None,
        typer.Option("--sticker", help="What the QR code says: https://example/{station}"),
    ] = None,
    installer: Annotated[
        str | None, typer.Option("--installer", help="Who answers for it, for the report.")
    ] = None,
    reports: Annotated[
        Path | None, typer.Option("--reports", help="A folder; else beside the configuration.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of going on.")
    ] = False,
    lang: LanguageOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nobody: options, else what is usual.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put this controller into service, step by step; killed or interrupted, it goes on."""
    from edge_agent.cli import commissioning
    from edge_agent.commissioning.work import Options

    options = Options(
        station=station,
        ports=tuple(port or ()),
        hosts=tuple(host or ()),
        tcp_port=tcp_port,
        units=tuple(unit or ()),
        profiles=tuple(profile or ()),
        use=tuple(use or ()),
        failsafe_timeout=failsafe_timeout,
        failsafe_current=failsafe_current,
        fuse=fuse,
        connector_max=tuple(connector_max or ()),
        rotation=tuple(rotation or ()),
        cloud=cloud,
        code=code,
        ocpp_url=ocpp_url,
        ocpp_version=ocpp_version,
        ocpp_identity=ocpp_identity,
        ocpp_profile=ocpp_profile,
        ocpp_password=ocpp_password,
        ocpp_ca=ocpp_ca,
        alone=alone,
        charge=charge,
        charge_s=charge_s,
        wait_s=wait_s,
        evse=evse,
        sticker=sticker,
        installer=installer,
        reports=reports,
    )
    done = commissioning.commission(
        config,
        options,
        journal=journal,
        restart=restart,
        language=lang,
        yes=yes,
        as_json=as_json,
    )
    raise typer.Exit(done)


@app.command()
def decommission(
    config: ConfigOption = Path(DEFAULT),
    force: Annotated[
        bool,
        typer.Option("--force", help="Even if something is lost or a charger does not answer."),
    ] = False,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds for the queue, and for the agent's end.")
    ] = 60.0,
    lang: LanguageOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take this controller out of service: failsafe as before, station retired, keys wiped."""
    from edge_agent.cli import commissioning

    done = commissioning.leave_service(
        config, force=force, wait_s=wait_s, language=lang, yes=yes, as_json=as_json
    )
    raise typer.Exit(done)


def main() -> None:
    app(prog_name="karvon agent")
