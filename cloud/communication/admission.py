"""Who may connect over OCPP, and how: pure rules over what a request says and what is known of it.

`decide` answers an upgrade request with Admit or Refuse, or first with Check: verify this password
and ask again with the outcome, since hashing is dear and most refusals need none. A station
reaches a security profile by what it has proven:

| profile | proof                                        |
|---------|----------------------------------------------|
| 0       | none                                         |
| 1       | its password, over any transport             |
| 2       | its password, over TLS                       |
| 3       | a certificate of ours with its name, over TLS|

It may reach more than it must, never less; only an operator lowers what it must.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

from protocols.agent_link import MAX_STATION_LENGTH

SUBPROTOCOLS: Final = ("ocpp2.1", "ocpp2.0.1", "ocpp1.6")
ASSUMED: Final = "ocpp1.6"
"""What an allow-listed station speaks that names no subprotocol."""
LONGEST_LOGIN: Final = 512

Registration = Literal["open", "pending", "known"]


class Profile(IntEnum):
    """OCPP's security profiles."""

    OPEN = 0
    BASIC = 1
    TLS_BASIC = 2
    MUTUAL_TLS = 3


class Reason(StrEnum):
    """Why somebody was refused; for logs and events, a station is told the status alone."""

    IDENTITY = "identity"
    SUBPROTOCOL = "subprotocol"
    NO_SUBPROTOCOL = "no_subprotocol"
    UNKNOWN = "unknown"
    USER_DIFFERS = "user_differs"
    PASSWORD_NEEDED = "password_needed"  # noqa: S105  # a reason, no secret
    WRONG_PASSWORD = "wrong_password"  # noqa: S105  # likewise
    NO_CREDENTIALS = "no_credentials"
    TLS_NEEDED = "tls_needed"
    CERTIFICATE_NEEDED = "certificate_needed"
    CERTIFICATE_NAME = "certificate_name"
    CERTIFICATE_OWNER = "certificate_owner"
    CERTIFICATE_OVER = "certificate_over"
    CERTIFICATE_REVOKED = "certificate_revoked"
    PROFILE = "profile"
    TOO_MANY_GUESSES = "too_many_guesses"
    TOO_MANY_STRANGERS = "too_many_strangers"
    PENDING_FULL = "pending_full"
    BUSY = "busy"
    UNAVAILABLE = "unavailable"


class Proof(StrEnum):
    """How the password of a Check turned out."""

    RIGHT = "right"
    WRONG = "wrong"


@dataclass(frozen=True)
class ClientCertificate:
    """A client's certificate whose chain and validity TLS has verified."""

    common_name: str
    organization: str
    serial: str
    fingerprint: str
    """SHA-256 of the certificate, hex."""
    not_after: datetime


@dataclass(frozen=True)
class Login:
    """What a Basic Authorization header holds: bytes, since some passwords are no text."""

    raw: bytes

    def password(self, identity: str) -> bytes | None:
        """None when the user is somebody else. An identity may hold colons itself."""
        for written in _writings(identity):
            if self.raw.startswith(written + b":"):
                return self.raw[len(written) + 1 :]
        return None


def _writings(identity: str) -> list[bytes]:
    """Clients write header text as UTF-8, older ones as Latin-1."""
    written = [identity.encode()]
    try:
        return [*written, identity.encode("latin-1")]
    except UnicodeEncodeError:
        return written


def login_of(authorization: str | None) -> Login | None:
    """None for another scheme or what cannot be read: as if nothing had been sent."""
    scheme, _, value = (authorization or "").strip().partition(" ")
    if scheme.lower() != "basic" or len(value) > LONGEST_LOGIN:
        return None
    try:
        raw = base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return Login(raw) if b":" in raw else None


def identity_of(target: str) -> str | None:
    """The identity in a request's target: its last segment, percent-decoded once.

    None for what no station can be called: it would break a log line, or a URL of ours.
    """
    path = target.partition("?")[0].rstrip("/")
    try:
        identity = unquote_to_bytes(path.rpartition("/")[2]).decode()
    except UnicodeDecodeError:
        return None
    fits = 0 < len(identity) <= MAX_STATION_LENGTH
    plain = identity.isprintable() and identity.strip() and "/" not in identity
    return identity if fits and plain else None


@dataclass(frozen=True)
class Request:
    """An upgrade request as it arrived; `identity` is what `identity_of` made of its target."""

    identity: str | None
    source: str
    subprotocols: Sequence[str] = ()
    authorization: str | None = None
    tls: bool = False
    certificate: ClientCertificate | None = None


@dataclass(frozen=True)
class StationFacts:
    """What is known of the station of that identity."""

    id: int
    tenant_id: int
    waiting: bool = False
    """It is on the pending list."""
    profile: Profile = Profile.OPEN
    pending_profile: Profile | None = None
    has_password: bool = False
    has_agent: bool = False
    """It logs in to the broker: nobody may speak for it here without credentials."""
    allow_no_subprotocol: bool = False
    certificate_revoked: bool = False
    """The one that the request came with."""


@dataclass(frozen=True)
class Policy:
    """What holds for every station."""

    registration: Registration = "known"
    least_profile: Profile = Profile.OPEN
    organization: str | None = None
    """What a client certificate names as its owner; None: whoever."""
    subprotocols: Sequence[str] = SUBPROTOCOLS


class Standing(StrEnum):
    """How a station's BootNotification is to be answered."""

    ACCEPTED = "Accepted"
    PENDING = "Pending"


@dataclass(frozen=True)
class Admit:
    """Let it in; `station` is None for one that nobody has announced."""

    identity: str
    station: StationFacts | None
    profile: Profile
    """What the connection has proven."""
    protocol: str
    echoed: bool
    """Whether the answer names the protocol: not to those that named none."""
    standing: Standing
    raise_to: Profile | None = None
    """The station has shown that it can do more, as an operator wished: from now on it must."""


@dataclass(frozen=True)
class Refuse:
    status: int
    reason: Reason
    retry_after: int | None = None

    def headers(self) -> list[tuple[str, str]]:
        """What goes with the status."""
        told = [] if self.retry_after is None else [("Retry-After", str(self.retry_after))]
        if self.status == 401:
            told.append(("WWW-Authenticate", 'Basic realm="Karvon", charset="UTF-8"'))
        return told


@dataclass(frozen=True)
class Check:
    """Verify this password, then decide again with the proof."""

    password: bytes


Decision = Admit | Refuse | Check


def decide(
    request: Request,
    station: StationFacts | None,
    policy: Policy,
    now: datetime,
    proof: Proof | None = None,
) -> Decision:
    """What becomes of the request."""
    if request.identity is None:
        return Refuse(404, Reason.IDENTITY)
    protocol = next((p for p in request.subprotocols if p in policy.subprotocols), None)
    if request.subprotocols and protocol is None:
        return Refuse(400, Reason.SUBPROTOCOL)
    login = login_of(request.authorization)
    if login is not None and login.password(request.identity) is None:
        return Refuse(401, Reason.USER_DIFFERS)
    refused = _certificate(request.identity, request.certificate, station, policy, now)
    if refused is not None:
        return refused
    reached = (
        _stranger(request, policy)
        if station is None
        else _known(request, station, max(station.profile, policy.least_profile), proof)
    )
    if not isinstance(reached, Profile):
        return reached
    if protocol is None and not (station and station.allow_no_subprotocol):
        return Refuse(400, Reason.NO_SUBPROTOCOL)
    return _admitted(request.identity, station, reached, protocol, policy)


def _certificate(
    identity: str,
    certificate: ClientCertificate | None,
    station: StationFacts | None,
    policy: Policy,
    now: datetime,
) -> Refuse | None:
    if certificate is None:
        return None
    if certificate.common_name != identity:
        return Refuse(401, Reason.CERTIFICATE_NAME)
    if policy.organization not in {None, certificate.organization}:
        return Refuse(401, Reason.CERTIFICATE_OWNER)
    if certificate.not_after <= now:  # a resumed TLS session is not verified anew
        return Refuse(401, Reason.CERTIFICATE_OVER)
    if station is not None and station.certificate_revoked:
        return Refuse(401, Reason.CERTIFICATE_REVOKED)
    return None


def _stranger(request: Request, policy: Policy) -> Profile | Refuse:
    """A certificate of ours speaks for a station that was deleted, not for an unknown one."""
    if policy.registration == "known" or policy.least_profile > Profile.OPEN:
        return Refuse(404, Reason.UNKNOWN)
    return Refuse(401, Reason.CERTIFICATE_REVOKED) if request.certificate else Profile.OPEN


def _known(
    request: Request, station: StationFacts, needed: Profile, proof: Proof | None
) -> Profile | Refuse | Check:
    if needed >= Profile.TLS_BASIC and not request.tls:
        return Refuse(403, Reason.TLS_NEEDED)
    if request.certificate is not None:
        return Profile.MUTUAL_TLS
    if needed is Profile.MUTUAL_TLS:
        return Refuse(401, Reason.CERTIFICATE_NEEDED)
    if station.has_password:
        return _by_password(request, proof)
    if needed > Profile.OPEN or station.has_agent:
        return Refuse(401, Reason.NO_CREDENTIALS)
    return Profile.OPEN


def _by_password(request: Request, proof: Proof | None) -> Profile | Refuse | Check:
    login = login_of(request.authorization)
    password = None if login is None else login.password(request.identity or "")
    if password is None:
        return Refuse(401, Reason.PASSWORD_NEEDED)
    if proof is None:
        return Check(password)
    if proof is Proof.WRONG:
        return Refuse(401, Reason.WRONG_PASSWORD)
    return Profile.TLS_BASIC if request.tls else Profile.BASIC


def _admitted(
    identity: str,
    station: StationFacts | None,
    reached: Profile,
    protocol: str | None,
    policy: Policy,
) -> Admit:
    waits = policy.registration == "pending" if station is None else station.waiting
    wished = None if station is None else station.pending_profile
    raised = station is not None and wished is not None and reached >= wished > station.profile
    return Admit(
        identity,
        station,
        reached,
        protocol or ASSUMED,
        echoed=protocol is not None,
        standing=Standing.PENDING if waits else Standing.ACCEPTED,
        raise_to=wished if raised else None,
    )


def entered(admitted: Admit, station_id: int, tenant_id: int) -> Admit:
    """The same for a stranger that has been entered among the stations."""
    waiting = admitted.standing is Standing.PENDING
    return replace(admitted, station=StationFacts(station_id, tenant_id, waiting=waiting))


# --------------------------------------------------------------------------- while it lasts


@dataclass(frozen=True)
class Session:
    """A connection that was admitted."""

    identity: str
    station_id: int
    profile: Profile
    certificate: ClientCertificate | None = None


def overdue(session: Session, station: StationFacts | None, policy: Policy) -> Reason | None:
    """Why a connection must end now; None: it may stay.

    A certificate that ends is no reason: its renewal goes over this very connection, and so does a
    password that was set a moment ago.
    """
    if station is None or station.id != session.station_id:
        return Reason.UNKNOWN
    if session.certificate is not None and station.certificate_revoked:
        return Reason.CERTIFICATE_REVOKED
    if session.profile < max(station.profile, policy.least_profile):
        return Reason.PROFILE
    return None
