"""The station joins the cloud by its claim code, an OCPP backend by what that gave, or nobody."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_agent import faultpoints, joining, station_key
from edge_agent.commissioning.dialog import CommissionError
from edge_agent.commissioning.progress import Check
from edge_agent.commissioning.reaching import (
    NotReachedError,
    log_in_to_backend,
    log_in_to_broker,
)
from edge_agent.commissioning.work import Work
from edge_agent.config import Config, UplinkPart
from edge_agent.joining import JoinError, Waiting
from edge_agent.private import write_private

PASSWORD = "ocpp-password"  # noqa: S105  # a file's name
CLOUD, OCPP, ALONE = "cloud", "ocpp", "alone"


async def registration(work: Work) -> list[Check]:
    """Register, write [uplink], and try whether the other end lets this station in."""
    dialog = work.dialog
    option = "--cloud, --ocpp-url or --alone"
    wanted = set(dialog.ask(option, "ask_uplink", _kinds, given=_given(work)))
    uplink: dict[str, Any] = {}
    if CLOUD in wanted:
        uplink |= await _claim(work)
    if OCPP in wanted:
        uplink["ocpp"] = _backend(work, claimed=CLOUD in wanted)
    there = work.plain.get("uplink", {})
    kept = {name: value for name, value in there.items() if name not in {"ocpp", "carries"}}
    work.place(uplink={**kept, **uplink} if wanted != {ALONE} else None)
    work.progress.uplinks = tuple(sorted(wanted))
    if wanted == {ALONE}:
        text = dialog.text("works_alone")
        return [Check(step="registration", what="uplink", verdict="pass", text=text)]
    return [*_certified(work), *await _tried(work.config)]


def _given(work: Work) -> str | None:
    options = work.options
    chosen = {CLOUD: options.cloud, OCPP: options.ocpp_url, ALONE: options.alone}
    named = [kind for kind, value in chosen.items() if value]
    return ",".join(named) or None


def _kinds(text: str) -> list[str]:
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not parts or not set(parts) <= {CLOUD, OCPP, ALONE} or (ALONE in parts and len(parts) > 1):
        raise ValueError(f"'{text}': cloud, ocpp, both as cloud,ocpp, or alone")
    return parts


async def _claim(work: Work) -> dict[str, Any]:
    """Once only: what a code gave is on disk, and is not asked for again."""
    dialog, progress = work.dialog, work.progress

    def address(text: str) -> str:
        try:
            joining.check_address(text)
        except JoinError as error:
            raise ValueError(str(error)) from error
        return text.rstrip("/")

    part = work.config.uplink or UplinkPart()
    credentials = work.path.parent / part.credentials
    cloud = dialog.ask("--cloud", "ask_cloud", address, given=work.options.cloud)
    if progress.claimed == cloud and credentials.exists():
        dialog.say("claimed_before", cloud=cloud)
        return {"credentials": part.credentials}
    code = work.options.code or progress.claim_code or None
    if code is None:
        code = dialog.ask("--code", "ask_code", _code)
    digest = hashlib.sha256(code.encode()).hexdigest()
    if progress.claiming == digest and _is_kept(credentials, cloud, progress.station):
        held = station_key.held_in(credentials.parent)
        progress.claimed, progress.claim_code = cloud, ""
        progress.certificate_until = None if held is None else held.until.isoformat()
        work.save()
        return {"credentials": part.credentials}
    progress.claiming = digest
    work.save()
    try:
        joined = await asyncio.to_thread(joining.claim, cloud, progress.station, code, credentials)
    except JoinError as error:
        raise CommissionError(str(error), error.code) from error
    if isinstance(joined, Waiting):
        progress.claim_code = joined.code or progress.claim_code
        work.save()
        raise CommissionError(dialog.text("waits_for_approval", station=joined.station))
    faultpoints.reach(faultpoints.COMMISSION_CLAIMED)
    progress.claimed, progress.claim_code = cloud, ""
    progress.certificate_until = joined.certificate_until
    work.save()
    dialog.say("claimed", station=joined.station, cloud=cloud)
    return {"credentials": part.credentials}


def _is_kept(credentials: Path, cloud: str, station: str) -> bool:
    """All of a claim's answer is on disk: the draft of the key is what goes last."""
    try:
        known = msgspec.json.decode(credentials.read_bytes(), type=joining.Credentials)
    except (OSError, msgspec.DecodeError):
        return False
    draft = credentials.with_name(station_key.DRAFT)
    return (known.cloud, known.station) == (cloud, station) and not draft.exists()


def _code(text: str) -> str:
    if not text:
        raise ValueError("the code stands in the cloud, beside the station")
    return text


def _backend(work: Work, *, claimed: bool) -> dict[str, Any]:
    """The table [uplink.ocpp]; the password goes into a file of its own."""
    options, dialog = work.options, work.dialog
    url = dialog.ask("--ocpp-url", "ask_ocpp_url", _ocpp_url, given=options.ocpp_url)
    version = dialog.ask(
        "--ocpp-version", "ask_ocpp_version", _version, given=options.ocpp_version, default="1.6"
    )
    identity = dialog.ask(
        "--ocpp-identity",
        "ask_ocpp_identity",
        str,
        given=options.ocpp_identity,
        default=work.progress.station,
    )
    usual = "2" if url.startswith("wss:") else "1"
    given = None if options.ocpp_profile is None else str(options.ocpp_profile)
    if given is None and options.ocpp_url is not None and options.ocpp_password is None:
        given = "0"
    profile = dialog.ask("--ocpp-profile", "ask_ocpp_profile", _profile, given=given, default=usual)
    table: dict[str, Any] = {"url": url, "version": version, "identity": identity}
    if profile in {1, 2}:
        table["password"] = _password(work)
    if profile == 3:
        if not claimed and not (work.path.parent / station_key.NAME).exists():
            raise CommissionError(f"--ocpp-profile 3: {dialog.text('no_certificate')}", 2)
        table |= {"certificate": station_key.NAME, "key": station_key.NAME}
    if options.ocpp_ca is not None:
        table["ca"] = str(options.ocpp_ca.absolute())
    return {**table, "security_profile": profile}


def _password(work: Work) -> str:
    """From a file, or typed; kept in a file of the agent's user."""

    def read(name: str) -> bytes:
        try:
            return Path(name).read_bytes().strip()
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from error

    target = work.path.parent / PASSWORD
    if work.options.ocpp_password is not None:
        password = work.dialog.ask(
            "--ocpp-password-file", "ask_ocpp_password", read, given=str(work.options.ocpp_password)
        )
    else:
        password = work.dialog.ask("--ocpp-password-file", "ask_ocpp_password", str.encode)
    write_private(target, password + b"\n")
    return PASSWORD


def _ocpp_url(text: str) -> str:
    if not text.startswith(("ws://", "wss://")):
        raise ValueError(f"'{text}' is not ws://host[:port]/path or wss://…")
    return text


def _version(text: str) -> str:
    if text not in {"1.6", "2.0.1"}:
        raise ValueError(f"'{text}': 1.6 or 2.0.1")
    return text


def _profile(text: str) -> int:
    if text not in {"0", "1", "2", "3"}:
        raise ValueError(f"'{text}': 0, 1, 2 or 3")
    return int(text)


async def _tried(config: Config) -> list[Check]:
    checks, part = [], config.uplink
    if part is not None and config.mqtt_carries:
        checks.append(await _try("cloud (MQTT)", lambda: log_in_to_broker(config, part)))
    ocpp = config.ocpp
    if ocpp is not None:
        checks.append(await _try("OCPP", lambda: log_in_to_backend(config, ocpp)))
    return checks


async def _try(what: str, login: Callable[[], Any]) -> Check:
    try:
        text = await login()
    except NotReachedError as error:
        return Check(step="registration", what=what, verdict="fail", text=str(error))
    return Check(step="registration", what=what, verdict="pass", text=text)


def _certified(work: Work) -> list[Check]:
    if CLOUD not in work.progress.uplinks:
        return []
    until, dialog = work.progress.certificate_until, work.dialog
    if until is None:
        text = dialog.text("not_certified")
        return [Check(step="registration", what="certificate", verdict="warn", text=text)]
    text = dialog.text("certified", until=until[:10])
    return [Check(step="registration", what="certificate", verdict="pass", text=text)]
