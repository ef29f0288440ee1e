"""Certificates of stations and of the port they come to, kept good while a gateway runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cloud.communication.api import Known
from cloud.communication.conversation import Asked, Call
from cloud.communication.gateway import Gateway
from cloud.communication.pki import Pki, PkiSettings
from cloud.communication.security import OcppSecurity
from cloud.communication.tls import load_server_certificate
from cloud.kernel.errors import KarvonError, Unavailable
from protocols.ocpp.dialect import NotExpressible
from protocols.ocpp.messages import SignCertificate
from protocols.ocpp.version import Version

logger = logging.getLogger(__name__)

EVERY_S: Final = 3600.0
ANSWER_S: Final = 60.0


class Certifying:
    """Answers signing requests, asks for renewals, renews the server's own certificate."""

    def __init__(
        self,
        security: OcppSecurity,
        settings: PkiSettings | None,
        context: ssl.SSLContext | None,
        clock: Callable[[], datetime],
    ) -> None:
        self._security = security
        self._settings = settings
        self._context = context
        self._clock = clock
        self._gateway: Gateway | None = None

    def connect(self, gateway: Gateway) -> None:
        """Say which gateway it works for."""
        self._gateway = gateway

    async def sign(self, call: Call, told: SignCertificate) -> None:
        """A02: the answer says whether there will be a certificate, which then follows."""
        party = call.conversation.party
        station = Known(party.station_id, party.tenant_id)
        try:
            made = await self._security.sign(station, party.identity, told.csr)
        except Unavailable:
            call.conversation.refuse(call, "InternalError", "try again")
            return
        except KarvonError as refused:
            logger.warning("no certificate for %r: %s", party.identity, refused.detail)
            call.answer.status = "Rejected"
            call.conversation.reply(call)
            return
        call.conversation.reply(call)
        payload = {"certificateChain": made.row.pem}
        if party.dialect.version is not Version.V16:
            payload["certificateType"] = told.type
        if self._gateway is not None:
            asked = Asked("CertificateSigned", payload)
            self._gateway.ask(call.conversation, asked, ANSWER_S)

    async def run(self) -> None:
        """Look for what ends soon, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            if self._settings is not None and self._context is not None:
                pki = await asyncio.to_thread(Pki.open, self._settings, self._clock())
                load_server_certificate(self._context, pki.tls)
            await self.renew()

    async def renew(self) -> None:
        """Ask stations whose certificate ends soon to have a new one signed."""
        if self._gateway is None:
            return
        for row in await self._security.due_for_renewal(self._gateway.stations()):
            who = self._gateway.live(row.station_id)
            if who is None:
                continue
            try:
                request = who.party.dialect.trigger("SignCertificate")
            except NotExpressible:
                continue
            self._gateway.ask(who, Asked(request.action, request.payload), ANSWER_S)
