"""What a controller says to the cloud beside the agent link: claim, renewal, retirement."""

from __future__ import annotations

import base64
import ssl
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from edge_agent import faultpoints
from edge_agent.private import write_private
from edge_agent.station_key import KeyFileError, keep_certificate, kept_pair

if TYPE_CHECKING:
    from urllib.error import HTTPError

TIMEOUT_S: Final = 30
ACCEPTED: Final = 202
LOCAL: Final = {"localhost", "127.0.0.1", "::1"}
LONGEST_ANSWER: Final = 1024 * 1024
Answer = TypeVar("Answer", bound=msgspec.Struct)


class Credentials(msgspec.Struct, frozen=True):
    """What a claim gave this controller; a file of its owner only."""

    password: str
    username: str = ""
    station: str = ""
    mqtt_url: str = ""
    cloud: str = ""
    """Where it was claimed, for renewal and retirement; older claims did not keep it."""


class Claim(msgspec.Struct, frozen=True):
    """The cloud's answer."""

    station: str
    mqtt_url: str
    username: str
    password: str
    ca_pem: str = ""
    certificate: str | None = None


class Waiting(msgspec.Struct, frozen=True):
    """The cloud's answer (202) where an operator must approve unannounced stations."""

    station: str
    detail: str
    code: str | None = None
    """Told once; None when the station waits already."""


class Renewed(msgspec.Struct, frozen=True):
    certificate: str


class Retired(msgspec.Struct, frozen=True):
    station: str


class Joined(msgspec.Struct, frozen=True):
    """What a claim has put on disk."""

    station: str
    mqtt_url: str
    credentials: Path
    certificate_until: str | None
    """None: the cloud signs no certificates."""


class JoinError(Exception):
    """The cloud was not reached (3), said no (1), or was asked wrongly (2): see `code`."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def claim(cloud: str, station: str, code: str | None, credentials: Path) -> Joined | Waiting:
    """Exchange a code for credentials and a certificate of a key made here, and keep them.

    After a failure on the way it may be repeated with the same code. Raises JoinError, OSError.
    """
    pair = kept_pair(credentials.parent, station)
    asked = {"station": station, "code": code, "csr": pair.request}
    status, body = _post(cloud, "claims", asked)
    faultpoints.reach(faultpoints.CLAIM_ANSWERED)
    if status == ACCEPTED:
        return _read(body, Waiting, cloud)
    answer = _read(body, Claim, cloud)
    if answer.ca_pem:
        write_private(credentials.with_name("ca.pem"), answer.ca_pem.encode())
    kept = Credentials(
        station=answer.station,
        mqtt_url=answer.mqtt_url,
        username=answer.username,
        password=answer.password,
        cloud=cloud,
    )
    write_private(credentials, msgspec.json.encode(kept))
    until = None
    if answer.certificate is not None:  # the last: it lets go of the key that may repeat the claim
        try:
            held = keep_certificate(credentials.parent, pair, answer.certificate)
        except KeyFileError as error:
            raise JoinError(str(error), 1) from error
        until = held.until.isoformat()
    return Joined(answer.station, answer.mqtt_url, credentials, until)


def renew(known: Credentials, folder: Path) -> str:
    """Have a new key certified and put in place; until when. Raises JoinError, OSError."""
    pair = kept_pair(folder, known.station)
    _, body = _post(known.cloud, "claims/certificate", {"csr": pair.request}, known)
    try:
        held = keep_certificate(folder, pair, _read(body, Renewed, known.cloud).certificate)
    except KeyFileError as error:
        raise JoinError(str(error), 1) from error
    return held.until.isoformat()


def retire(known: Credentials) -> str:
    """Take the station out of the cloud's fleet. Raises JoinError."""
    _, body = _post(known.cloud, "claims/retirement", {}, known)
    return _read(body, Retired, known.cloud).station


def check_address(cloud: str) -> None:
    """Raises JoinError for what is no address, or would show secrets to the network."""
    url = urllib.parse.urlsplit(cloud)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise JoinError(f"--cloud is an address like https://cloud.example, not '{cloud}'", 2)
    if url.scheme == "http" and url.hostname not in LOCAL:
        raise JoinError("a claim over http would show the password to the network; use https", 2)


def _post(
    cloud: str, path: str, asked: dict[str, Any], known: Credentials | None = None
) -> tuple[int, bytes]:
    import urllib.error
    import urllib.request  # 2 MB that an agent with nothing to claim or renew does without

    check_address(cloud)
    headers = {"Content-Type": "application/json"}
    if known is not None:
        pair = base64.b64encode(f"{known.username}:{known.password}".encode()).decode()
        headers["Authorization"] = f"Basic {pair}"
    request = urllib.request.Request(  # noqa: S310  # the scheme was checked
        f"{cloud.rstrip('/')}/api/v1/{path}", data=msgspec.json.encode(asked), headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310  # ditto
            return response.status, response.read(LONGEST_ANSWER)
    except urllib.error.HTTPError as error:
        raise _refused(error, path) from None
    except (urllib.error.URLError, ssl.SSLError, TimeoutError, OSError) as error:
        why = getattr(error, "reason", error)
        raise JoinError(
            f"{cloud} cannot be reached ({why}); check address and network", 3
        ) from None


def _read(body: bytes, kind: type[Answer], cloud: str) -> Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise JoinError(
            f"{cloud} answered with something else ({error}); is it Karvon?", 1
        ) from None


class Problem(msgspec.Struct, frozen=True):
    """What a person needs of problem+json (RFC 9457)."""

    title: str = ""
    detail: str = ""


def _refused(error: HTTPError, path: str) -> JoinError:
    with error:
        body = error.read(65_536)
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.DecodeError:
        problem = Problem()
    why = problem.detail or problem.title or error.reason
    remedy = "; check station and code, or have a new code made in the cloud"
    return JoinError(
        f"the cloud refused the {path.replace('claims/', '').rstrip('s')} ({error.code}: {why})"
        + (remedy if path == "claims" else ""),
        1,
    )
