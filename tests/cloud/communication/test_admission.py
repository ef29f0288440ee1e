"""Who is let in: every combination of what a request proves and what a station must prove."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.communication.admission import (
    Admit,
    Check,
    ClientCertificate,
    Policy,
    Profile,
    Proof,
    Reason,
    Refuse,
    Request,
    Standing,
    StationFacts,
    decide,
    entered,
    identity_of,
    login_of,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
STATION = StationFacts(1, 1)
KNOWN, OPEN, PENDING = Policy("known"), Policy("open"), Policy("pending")


def basic(user: str | bytes, password: str | bytes = "secret") -> str:
    raw = b":".join(part if isinstance(part, bytes) else part.encode() for part in (user, password))
    return f"Basic {base64.b64encode(raw).decode()}"


def certificate(name: str = "CP-1", **other: object) -> ClientCertificate:
    made = ClientCertificate(name, "Karvon", "ab12", "f" * 64, NOW + timedelta(days=30))
    return replace(made, **other)  # type: ignore[arg-type]


def request(**given: object) -> Request:
    return replace(Request("CP-1", "192.0.2.1", ("ocpp1.6",)), **given)  # type: ignore[arg-type]


def judged(
    asked: Request, station: StationFacts | None = STATION, policy: Policy = KNOWN
) -> Admit | Refuse:
    """The outcome, with every password that is asked about taken for right if it is `secret`."""
    answer = decide(asked, station, policy, NOW)
    if isinstance(answer, Check):
        proof = Proof.RIGHT if answer.password == b"secret" else Proof.WRONG
        answer = decide(asked, station, policy, NOW, proof)
    assert not isinstance(answer, Check)
    return answer


def refusal(
    asked: Request, station: StationFacts | None = STATION, policy: Policy = KNOWN
) -> tuple[int, Reason]:
    answer = judged(asked, station, policy)
    assert isinstance(answer, Refuse)
    return answer.status, answer.reason


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("target", "identity"),
    [
        ("/CP-1", "CP-1"),
        ("/ocpp/1.6/CP-1/?token=x", "CP-1"),
        ("/RDAM%7C123", "RDAM|123"),
        ("/RDAM%257C123", "RDAM%7C123"),  # decoded once
        ("/a%2Fb", None),
        ("/%D0%A2", "Т"),
        ("/", None),
        ("/ocpp/%20", None),
        ("/CP%0D%0AX", None),
        ("/CP%1B[2J", None),
        ("/%FF", None),
        ("/" + "x" * 49, None),
    ],
)
def test_an_identity_is_decoded_once(target: str, identity: str | None) -> None:
    assert identity_of(target) == identity


@given(
    st.text(min_size=1, max_size=48).filter(
        lambda name: name.isprintable() and name.strip() and "/" not in name
    )
)
def test_every_printable_identity_survives_its_url(identity: str) -> None:
    assert identity_of("/ocpp/" + quote(identity, safe="")) == identity


@given(st.text(max_size=200))
def test_no_header_breaks_the_reading_of_logins(header: str) -> None:
    login_of(header)
    login_of("Basic " + header)


def test_a_login_may_hold_colons_and_bytes() -> None:
    for name, password in (("a:b", b"c:d"), ("CP-1", b"\xff\x00:\x01"), ("Т", b"x")):
        login = login_of(basic(name, password))
        assert login is not None
        assert login.password(name) == password
        assert login.password("other") is None
    latin = login_of(basic("CP-ü".encode("latin-1")))
    assert latin is not None
    assert latin.password("CP-ü") == b"secret"
    assert login_of("Bearer abc") is login_of("Basic !") is login_of(None) is None


def test_what_names_nobody_is_refused() -> None:
    assert refusal(request(identity=None)) == (404, Reason.IDENTITY)


# --------------------------------------------------------------------------- subprotocols


def test_the_stations_own_preference_decides_the_subprotocol() -> None:
    answer = judged(request(subprotocols=("ocpp1.5", "ocpp2.0.1", "ocpp1.6")))
    assert isinstance(answer, Admit)
    assert (answer.protocol, answer.echoed) == ("ocpp2.0.1", True)
    assert refusal(request(subprotocols=("ocpp1.5",))) == (400, Reason.SUBPROTOCOL)


def test_only_allow_listed_stations_may_name_no_subprotocol() -> None:
    asked = request(subprotocols=())
    assert refusal(asked) == (400, Reason.NO_SUBPROTOCOL)
    assert refusal(asked, None, OPEN) == (400, Reason.NO_SUBPROTOCOL)
    answer = judged(asked, replace(STATION, allow_no_subprotocol=True))
    assert isinstance(answer, Admit)
    assert (answer.protocol, answer.echoed) == ("ocpp1.6", False)


def test_nobody_learns_of_an_allow_list_without_the_password() -> None:
    guarded = replace(STATION, has_password=True)
    asked = request(subprotocols=())
    listed = replace(guarded, allow_no_subprotocol=True)
    assert refusal(asked, guarded) == refusal(asked, listed) == (401, Reason.PASSWORD_NEEDED)


# --------------------------------------------------------------------------- passwords


def test_a_station_with_a_password_must_present_it() -> None:
    guarded = replace(STATION, has_password=True)
    assert refusal(request(), guarded) == (401, Reason.PASSWORD_NEEDED)
    wrong = request(authorization=basic("CP-1", "guess"))
    assert refusal(wrong, guarded) == (401, Reason.WRONG_PASSWORD)
    answer = judged(request(authorization=basic("CP-1")), guarded)
    assert isinstance(answer, Admit)
    assert answer.profile is Profile.BASIC
    over_tls = judged(request(authorization=basic("CP-1"), tls=True), guarded)
    assert isinstance(over_tls, Admit)
    assert over_tls.profile is Profile.TLS_BASIC


@pytest.mark.parametrize("policy", [KNOWN, OPEN, PENDING])
def test_a_user_that_differs_from_the_path_is_refused(policy: Policy) -> None:
    asked = request(authorization=basic("CP-2"))
    for station in (STATION, replace(STATION, has_password=True), None):
        assert refusal(asked, station, policy) == (401, Reason.USER_DIFFERS)


def test_an_encoded_user_is_not_the_decoded_identity() -> None:
    guarded = replace(STATION, has_password=True)
    asked = request(identity="RDAM|123", authorization=basic("RDAM%7C123"))
    assert refusal(asked, guarded) == (401, Reason.USER_DIFFERS)


def test_nobody_speaks_for_an_agents_station_without_credentials() -> None:
    agent = replace(STATION, has_agent=True)
    assert refusal(request(), agent) == (401, Reason.NO_CREDENTIALS)
    assert isinstance(judged(request(tls=True, certificate=certificate()), agent), Admit)


def test_a_known_station_without_credentials_is_on_trial_unless_the_house_forbids_it() -> None:
    answer = judged(request())
    assert isinstance(answer, Admit)
    assert (answer.profile, answer.standing) == (Profile.OPEN, Standing.ACCEPTED)
    strict = Policy("known", least_profile=Profile.BASIC)
    assert refusal(request(), STATION, strict) == (401, Reason.NO_CREDENTIALS)
    assert refusal(request(), None, replace(strict, registration="open")) == (404, Reason.UNKNOWN)


# --------------------------------------------------------------------------- profiles


def test_no_password_is_looked_at_where_it_was_sent_in_the_clear() -> None:
    station = replace(STATION, profile=Profile.TLS_BASIC, has_password=True)
    answer = decide(request(authorization=basic("CP-1")), station, KNOWN, NOW)
    assert answer == Refuse(403, Reason.TLS_NEEDED)


def test_a_password_is_no_certificate() -> None:
    station = replace(STATION, profile=Profile.MUTUAL_TLS, has_password=True)
    asked = request(authorization=basic("CP-1"), tls=True)
    assert refusal(asked, station) == (401, Reason.CERTIFICATE_NEEDED)


@given(
    profile=st.sampled_from(Profile),
    least=st.sampled_from(Profile),
    pending=st.none() | st.sampled_from(Profile),
    has_password=st.booleans(),
    has_agent=st.booleans(),
    password=st.sampled_from([None, "secret", "wrong"]),
    user=st.sampled_from(["CP-1", "CP-2"]),
    tls=st.booleans(),
    name=st.sampled_from([None, "CP-1", "CP-2"]),
    revoked=st.booleans(),
)
def test_nobody_gets_in_with_less_than_the_station_must_prove(
    profile: Profile,
    least: Profile,
    pending: Profile | None,
    *,
    has_password: bool,
    has_agent: bool,
    password: str | None,
    user: str,
    tls: bool,
    name: str | None,
    revoked: bool,
) -> None:
    station = StationFacts(
        1, 1, profile=profile, pending_profile=pending, has_password=has_password,
        has_agent=has_agent, certificate_revoked=revoked,
    )  # fmt: skip
    asked = request(
        authorization=None if password is None else basic(user, password),
        tls=tls or name is not None,
        certificate=None if name is None else certificate(name),
    )
    answer = judged(asked, station, Policy("known", least_profile=least))
    by_certificate = name == "CP-1" and not revoked
    by_password = password == "secret" and user == "CP-1" and has_password
    if isinstance(answer, Refuse):
        assert answer.status in {401, 403}
        return
    assert answer.profile >= max(profile, least)
    assert by_certificate or by_password or (answer.profile is Profile.OPEN and not has_password)
    assert name in {None, "CP-1"}
    assert answer.profile < Profile.MUTUAL_TLS or by_certificate
    assert asked.tls or answer.profile <= Profile.BASIC
    if answer.raise_to is not None:
        assert profile < answer.raise_to <= answer.profile
        assert answer.raise_to == pending


def test_a_station_that_shows_what_was_wished_is_raised() -> None:
    station = replace(
        STATION, profile=Profile.BASIC, pending_profile=Profile.TLS_BASIC, has_password=True
    )
    in_clear = judged(request(authorization=basic("CP-1")), station)
    over_tls = judged(request(authorization=basic("CP-1"), tls=True), station)
    assert isinstance(in_clear, Admit)
    assert isinstance(over_tls, Admit)
    assert (in_clear.raise_to, over_tls.raise_to) == (None, Profile.TLS_BASIC)


# --------------------------------------------------------------------------- certificates


def test_a_certificate_speaks_for_its_own_station_only() -> None:
    def with_one(**other: object) -> Request:
        return request(tls=True, certificate=certificate(**other))  # type: ignore[arg-type]

    assert refusal(with_one(name="CP-2")) == (401, Reason.CERTIFICATE_NAME)
    assert refusal(with_one(not_after=NOW)) == (401, Reason.CERTIFICATE_OVER)
    ours = Policy("known", organization="Karvon")
    assert refusal(with_one(organization="X"), STATION, ours) == (401, Reason.CERTIFICATE_OWNER)
    revoked = replace(STATION, certificate_revoked=True)
    assert refusal(with_one(), revoked) == (401, Reason.CERTIFICATE_REVOKED)
    answer = judged(with_one(), STATION, ours)
    assert isinstance(answer, Admit)
    assert answer.profile is Profile.MUTUAL_TLS


def test_a_certificate_of_a_deleted_station_opens_nothing() -> None:
    asked = request(tls=True, certificate=certificate())
    assert refusal(asked, None, OPEN) == (401, Reason.CERTIFICATE_REVOKED)
    assert refusal(asked, None, KNOWN) == (404, Reason.UNKNOWN)


# --------------------------------------------------------------------------- strangers


def test_the_registration_policy_decides_about_strangers() -> None:
    assert refusal(request(), None, KNOWN) == (404, Reason.UNKNOWN)
    let_in, waits = judged(request(), None, OPEN), judged(request(), None, PENDING)
    assert isinstance(let_in, Admit)
    assert isinstance(waits, Admit)
    assert (let_in.station, let_in.standing) == (None, Standing.ACCEPTED)
    assert (waits.profile, waits.standing) == (Profile.OPEN, Standing.PENDING)
    assert entered(waits, 7, 1).station == StationFacts(7, 1, waiting=True)


@pytest.mark.parametrize("policy", [KNOWN, OPEN, PENDING])
def test_a_waiting_station_waits_whatever_the_policy_is_now(policy: Policy) -> None:
    answer = judged(request(), replace(STATION, waiting=True), policy)
    assert isinstance(answer, Admit)
    assert answer.standing is Standing.PENDING


def test_a_refusal_says_how_to_go_on() -> None:
    assert Refuse(401, Reason.PASSWORD_NEEDED).headers()[0][0] == "WWW-Authenticate"
    assert Refuse(503, Reason.BUSY, 12).headers() == [("Retry-After", "12")]
