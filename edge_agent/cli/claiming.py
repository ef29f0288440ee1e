"""`karvon agent claim`: exchange a single-use code for this station's credentials."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import msgspec

from edge_agent.cli.output import complain, print_json, print_lines
from edge_agent.config import ConfigError, UplinkPart, load
from edge_agent.private import write_private

TIMEOUT_S = 30
ACCEPTED = 202
LOCAL = {"localhost", "127.0.0.1", "::1"}


class Claim(msgspec.Struct, frozen=True):
    """The cloud's answer."""

    station: str
    mqtt_url: str
    username: str
    password: str
    ca_pem: str = ""


class Waiting(msgspec.Struct, frozen=True):
    """The cloud's answer (202) where an operator must approve unannounced stations."""

    station: str
    detail: str
    code: str | None = None
    """Told once; None when the station waits already."""


class ClaimError(Exception):
    """The claim failed; the exit code says whether the cloud was reached."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def claim(path: Path, cloud: str, code: str | None, *, as_json: bool) -> int:
    """Store the credentials where the configuration says.

    0 done, 1 refused or waiting for approval, 2 wrong usage, 3 the cloud is out of reach.
    """
    try:
        config = load(path)
        part = config.uplink or UplinkPart()
        answer = _post(cloud, {"station": config.station, "code": code})
        if isinstance(answer, Waiting):
            return _wait(answer, as_json=as_json)
        folder = _store(config.path(part.credentials), answer)
    except ConfigError as error:
        return complain(str(error), 2)
    except ClaimError as error:
        return complain(str(error), error.code)
    except OSError as error:
        return complain(f"the credentials cannot be stored: {error}; claim with a new code", 1)
    if as_json:
        print_json({"station": answer.station, "mqtt_url": answer.mqtt_url, "stored": str(folder)})
    else:
        print_lines([f"station {answer.station} is claimed; credentials are in {folder}"])
    if config.uplink is None:
        complain("the configuration has no [uplink] yet; add the table so that they are used", 0)
    return 0


def _wait(answer: Waiting, *, as_json: bool) -> int:
    if as_json:
        print_json({"station": answer.station, "status": "pending", "code": answer.code})
    elif answer.code is not None:
        print_lines(
            [
                f"station {answer.station} waits for an operator's approval; once approved:",
                f"karvon agent claim --cloud ADDRESS --code {answer.code}",
            ]
        )
    else:
        print_lines([f"station {answer.station} {answer.detail}"])
    return 1


def _post(cloud: str, asked: dict[str, str | None]) -> Claim | Waiting:
    url = urllib.parse.urlsplit(cloud)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ClaimError(f"--cloud is an address like https://cloud.example, not '{cloud}'", 2)
    if url.scheme == "http" and url.hostname not in LOCAL:
        raise ClaimError("a claim over http would show the password to the network; use https", 2)
    request = urllib.request.Request(  # noqa: S310  # the scheme was checked
        f"{cloud.rstrip('/')}/api/v1/claims",
        data=msgspec.json.encode(asked),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310  # ditto
            body = response.read()
            if response.status == ACCEPTED:
                return msgspec.json.decode(body, type=Waiting)
            return msgspec.json.decode(body, type=Claim)
    except urllib.error.HTTPError as error:
        raise _refused(error) from None
    except (urllib.error.URLError, ssl.SSLError, TimeoutError, OSError) as error:
        why = getattr(error, "reason", error)
        raise ClaimError(
            f"{cloud} cannot be reached ({why}); check address and network", 3
        ) from None
    except msgspec.DecodeError as error:
        raise ClaimError(
            f"{cloud} answered with something else ({error}); is it Karvon?", 1
        ) from None


class Problem(msgspec.Struct, frozen=True):
    """What a person needs of problem+json (RFC 9457)."""

    title: str = ""
    detail: str = ""


def _refused(error: urllib.error.HTTPError) -> ClaimError:
    with error:
        body = error.read(65_536)
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.DecodeError:
        problem = Problem()
    why = problem.detail or problem.title or error.reason
    return ClaimError(
        f"the cloud refused the claim ({error.code}: {why}); "
        "check station and code, or have a new code made in the cloud",
        1,
    )


def _store(path: Path, answer: Claim) -> Path:
    """Credentials and authority, each whole or not at all, readable by the owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if answer.ca_pem:
        write_private(path.with_name("ca.pem"), answer.ca_pem.encode())
    kept = {
        "station": answer.station,
        "mqtt_url": answer.mqtt_url,
        "username": answer.username,
        "password": answer.password,
    }
    write_private(path, msgspec.json.encode(kept))
    return path
