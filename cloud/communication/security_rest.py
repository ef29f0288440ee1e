"""/api/v1/stations/{station}/ocpp, its password, and /api/v1/ocpp-certificates."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, Field

from cloud.communication import security_store as store
from cloud.communication.api import LONGEST_CSR
from cloud.communication.passwords import LONGEST, SHORTEST, Form
from cloud.communication.security import (
    NamedCertificate,
    NewPassword,
    OcppSecurity,
    settings_version,
)
from cloud.communication.security_store import OcppStation
from cloud.kernel.etags import ETAG_RESPONSES, IfMatch, IfNoneMatch, state_of, version_of
from cloud.kernel.http import PROBLEM_RESPONSES, Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import Body, Flag, Instant, Zone
from protocols.agent_link import MAX_STATION_LENGTH

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
Admin = Annotated[Caller, Depends(require(Role.ADMIN))]
IdentityPath = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
SerialPath = Annotated[str, Path(pattern=r"^[0-9a-f]{1,40}$")]
PEM = "application/x-pem-file"
_ONCE = {"Cache-Control": "no-store"}


class OcppView(BaseModel):
    """How a station connects over OCPP."""

    station: str
    security_profile: int = Field(description="what a connection must reach at least")
    pending_profile: int | None = Field(description="what it must reach once it has reached it")
    password: bool = Field(description="whether it has one, which it then must present")
    password_set_at: datetime | None
    password_change_under_way: bool = Field(description="the one before is right, too, until then")
    key_form: Form | None = Field(description="in which form the station sends its key")
    allow_no_subprotocol: bool
    time_zone: str | None = Field(description="of times that it sends without a zone; null: UTC")
    ping_s: int | None = Field(description="seconds between pings; 0: none; null: the default")
    updated_at: datetime | None

    @classmethod
    def of(cls, station: str, row: OcppStation) -> OcppView:
        return cls(
            station=station,
            security_profile=row.security_profile,
            pending_profile=row.pending_profile,
            password=row.password is not None,
            password_set_at=row.password_set_at,
            password_change_under_way=row.previous_password is not None,
            key_form=None if row.key_form is None else Form(row.key_form),
            allow_no_subprotocol=row.allow_no_subprotocol,
            time_zone=row.time_zone,
            ping_s=row.ping_s,
            updated_at=row.updated_at,
        )


class OcppChange(Body):
    """Fields that are left out stay as they are."""

    security_profile: int = Field(0, ge=0, le=3, description="cuts off a connection below it")
    pending_profile: int | None = Field(
        None, ge=1, le=3, description="raises security_profile when the station reaches it"
    )
    allow_no_subprotocol: Flag = Field(
        False, description="take it for OCPP 1.6 when it names no subprotocol"
    )
    time_zone: Zone | None = None
    ping_s: int | None = Field(None, ge=0, le=3600)


class PasswordRequest(Body):
    password: str | None = Field(
        None,
        min_length=SHORTEST,
        max_length=LONGEST,
        pattern=r"^[ -~]*$",
        description="null: one is made, of 40 hex digits",
    )
    keep_earlier: Flag = Field(
        True, description="the one before holds until the station has used the new one"
    )


class PasswordView(BaseModel):
    """The password is shown only now."""

    station: str
    password: str
    generated: bool
    earlier_holds: bool

    @classmethod
    def of(cls, made: NewPassword) -> PasswordView:
        return cls.model_validate(made, from_attributes=True)


class CertificateView(BaseModel):
    """A station's certificate; times are UTC."""

    serial: str
    station: str
    fingerprint: str = Field(description="SHA-256, hex")
    issued_at: datetime
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None
    reason: str | None
    pem: str

    @classmethod
    def of(cls, named: NamedCertificate) -> CertificateView:
        row = named.row
        return cls(
            serial=row.serial,
            station=named.station,
            fingerprint=row.fingerprint,
            issued_at=row.issued_at,
            not_before=row.not_before,
            not_after=row.not_after,
            revoked_at=row.revoked_at,
            reason=row.reason,
            pem=row.pem,
        )


class SigningRequest(Body):
    csr: str = Field(
        max_length=LONGEST_CSR,
        description="PEM; its common name is the station's identity",
        json_schema_extra={"format": "certificate-request"},
    )


class RevocationRequest(Body):
    reason: str = Field(min_length=1, max_length=200)


async def _filters(
    revoked: bool | None = None,
    ends_before: Annotated[Instant | None, Query(description="its last day is before")] = None,
) -> dict[str, Any]:
    return {"revoked": revoked, "ends_before": ends_before}


Filters = Annotated[dict[str, Any], Depends(_filters)]
Listed = Annotated[Listing, Depends(listing(store.CERTIFICATES))]


def routes(security: OcppSecurity) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["ocpp"], responses=PROBLEM_RESPONSES)
    _add_settings(router, security)
    _add_passwords(router, security)
    _add_certificates(router, security)
    return router


def _add_settings(router: APIRouter, security: OcppSecurity) -> None:
    @router.get("/stations/{station}/ocpp", responses=ETAG_RESPONSES)
    async def read_ocpp_settings(
        caller: Viewer, station: IdentityPath, tagged: IfNoneMatch
    ) -> OcppView:
        """The defaults, for a station that nobody has set any for."""
        found = await security.settings(caller, station)
        view = OcppView.of(station, found)
        return tagged.answer(view, settings_version(found), state_of(view))

    @router.patch("/stations/{station}/ocpp")
    async def change_ocpp_settings(
        caller: Operator, station: IdentityPath, request: OcppChange, expected: IfMatch
    ) -> OcppView:
        """Refused (409) where the station could not connect any more."""
        changes = request.model_dump(exclude_unset=True)
        changed = await security.change(caller, station, changes, expected)
        view = OcppView.of(station, changed)
        return expected.answer(view, settings_version(changed), state_of(view))


def _add_passwords(router: APIRouter, security: OcppSecurity) -> None:
    @router.put("/stations/{station}/ocpp-password")
    async def set_ocpp_password(
        caller: Operator,
        station: IdentityPath,
        request: PasswordRequest,
        expected: IfMatch,
        response: Response,
    ) -> PasswordView:
        """Set or change it; the answer shows it, this once."""
        made = await security.set_password(
            caller, station, request.password, expected, keep_earlier=request.keep_earlier
        )
        response.headers.update(_ONCE)
        return PasswordView.of(made)

    @router.delete("/stations/{station}/ocpp-password", status_code=204)
    async def remove_ocpp_password(
        caller: Operator, station: IdentityPath, expected: IfMatch
    ) -> None:
        """Refused (409) while the station's security profile rests on it."""
        await security.remove_password(caller, station, expected)


def _add_certificates(router: APIRouter, security: OcppSecurity) -> None:
    @router.get(
        "/ocpp-authority",
        response_class=Response,
        responses={200: {"content": {PEM: {"schema": {"type": "string"}}}}},
    )
    async def read_ocpp_authority(_: Viewer) -> Response:
        """What stations have to trust, as PEM: install it on them before they connect by TLS."""
        return Response(security.authority_pem, media_type=PEM)

    @router.get("/ocpp-certificates", responses=LIST_RESPONSES)
    async def list_ocpp_certificates(
        caller: Viewer,
        listing: Listed,
        filters: Filters,
        station: Annotated[str | None, Query(max_length=MAX_STATION_LENGTH)] = None,
    ) -> Page[CertificateView]:
        """The latest first, if not asked otherwise."""
        found = await security.list_certificates(caller, listing.part, station, **filters)
        return listing.answer(found, CertificateView, CertificateView.of)

    @router.get("/ocpp-certificates/{serial}", responses=ETAG_RESPONSES)
    async def read_ocpp_certificate(
        caller: Viewer, serial: SerialPath, tagged: IfNoneMatch
    ) -> CertificateView:
        found = await security.certificate(caller, serial)
        return tagged.answer(CertificateView.of(found), version_of(found))

    @router.post("/ocpp-certificates/{serial}/revocation")
    async def revoke_ocpp_certificate(
        caller: Operator, serial: SerialPath, request: RevocationRequest
    ) -> CertificateView:
        """A connection that was made with it is cut within seconds."""
        return CertificateView.of(await security.revoke(caller, serial, request.reason))

    @router.post("/stations/{station}/ocpp-certificates", status_code=201)
    async def sign_ocpp_certificate(
        caller: Admin, station: IdentityPath, request: SigningRequest
    ) -> CertificateView:
        """For a request that somebody carries from the station; stations also ask by themselves."""
        return CertificateView.of(await security.sign_for(caller, station, request.csr))
