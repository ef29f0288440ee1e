"""The edge agent as an OCPP station at our own gateway: real sessions on a simulated board."""

from __future__ import annotations

from pathlib import Path

import pytest

from karvon.demo.faults import FaultProxy
from tests.cloud.ocpp.conftest import Ocpp
from tests.edge_agent.uplink.ocpp.charging_site import site

EACH = pytest.mark.parametrize("version", ["1.6", "2.0.1"])


@EACH
async def test_sessions_by_card_and_by_command_and_one_offline(
    ocpp: Ocpp, version: str, tmp_path: Path
) -> None:
    await ocpp.token("04A1B2C3")
    with FaultProxy(ocpp.gateway.port) as proxy:
        async with site(tmp_path, "KRV-1") as here:
            here.configure(f"ws://127.0.0.1:{proxy.port}/ocpp", version)
            await here.start()
            await here.connected()

            await here.session("04A1B2C3")
            await here.delivered()
            (first,) = await ocpp.transactions(station="KRV-1")
            assert (first["state"], first["reason"]) == ("ended", "Local")
            assert first["energy_wh"] == pytest.approx(here.true_wh, abs=1)
            assert first["id_token"]["value"] == "04A1B2C3"
