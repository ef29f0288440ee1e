"""The edge agent as an OCPP station at our own gateway: real sessions on a simulated board."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from edge_agent.rules.station import RefusedError
from karvon.demo.faults import FaultProxy
from tests.cloud.ocpp.conftest import Ocpp, serving
from tests.cloud.ocpp.test_attacks import asked
from tests.edge_agent.uplink.ocpp.charging_site import Site, site, until

Payload = dict[str, Any]

EACH = pytest.mark.parametrize("version", ["1.6", "2.0.1"])


async def _shown(ocpp: Ocpp, wanted: int) -> Payload:
    """The station's newest transaction, once there are so many."""

    async def there() -> Payload | None:
        found = await ocpp.transactions(station="KRV-1")
        return max(found, key=_begun) if len(found) == wanted else None

    return dict(await ocpp.until(there, f"{wanted} transactions"))


def _begun(one: Payload) -> Any:
    return one["started_at"]


@EACH
async def test_sessions_by_card_by_command_and_offline(
    ocpp: Ocpp, version: str, tmp_path: Path
) -> None:
    await ocpp.token("04A1B2C3")
    with FaultProxy(ocpp.gateway.port) as proxy:
        async with site(tmp_path, "KRV-1") as here:
            here.configure(f"ws://127.0.0.1:{proxy.port}/ocpp", version)
            await here.start()
            await here.connected()
            with pytest.raises(RefusedError, match="the backend says"):
                await here.card("STRANGER")

            await here.session("04A1B2C3")
            await here.delivered()
            first = await _shown(ocpp, 1)
            assert (first["state"], first["reason"]) == ("ended", "Local")
            assert first["energy_wh"] == pytest.approx(here.true_wh, abs=1)
            assert first["id_token"]["value"] == "04A1B2C3"
            before = here.true_wh

            await here.plug()
            wish = {"evse": 1, "id_token": {"value": "04A1B2C3"}}
            given = await ocpp.command("KRV-1", "remote-start", **wish)
            assert (await ocpp.ended(given))["status"] == "executed"
            await here.charging(30)
            running = await _shown(ocpp, 2)
            assert running["state"] == "open"
            stop = await ocpp.command("KRV-1", "remote-stop", transaction=running["transaction"])
            assert (await ocpp.ended(stop))["status"] == "executed"
            await here.idle()
            await here.unplug()
            await here.delivered()
            second = await _shown(ocpp, 2)
            assert (second["state"], second["reason"]) == ("ended", "Remote")
            assert second["energy_wh"] == pytest.approx(here.true_wh - before, abs=1)
            before = here.true_wh

            proxy.blackhole = True
            proxy.cut()
            await until(lambda: here.agent.ocpp.link != "connected", "the link to be gone")
            await here.session("04A1B2C3")
            await here.plug()
            await here.card("04A1B2C3")
            await here.charging(20)
            assert here.journal.pending_billing >= 4
            assert len(await ocpp.transactions(station="KRV-1")) == 2
            proxy.blackhole = False
            proxy.cut()
            await here.connected()
            await here.unplug()
            await here.delivered()
            ended = await _shown(ocpp, 4)
            assert (ended["state"], ended["reason"]) == ("ended", "EVDisconnected")
            everything = await ocpp.transactions(station="KRV-1")
            billed = sum(one["energy_wh"] for one in everything)
            assert billed == pytest.approx(here.true_wh, abs=len(everything))
            assert all(one["review"] is None for one in everything)
            assert before < here.true_wh
            shown = await ocpp.get("/stations/KRV-1")
            assert shown["link"] == f"ocpp{version}"
            assert shown["evses"][0]["state"]["value"]["status"] == "Available"
        assert await ocpp.get("/stations/KRV-1/deviations") == []


async def test_what_an_operator_sets_holds_at_the_station(ocpp: Ocpp, tmp_path: Path) -> None:
    """Availability, a limit, the local list, a reservation, and what a restart leaves of them."""
    await ocpp.token("04A1B2C3")
    await ocpp.token("OTHER")
    async with site(tmp_path, "KRV-1") as here:
        here.configure(f"ws://127.0.0.1:{ocpp.gateway.port}/ocpp", "1.6")
        await here.start()
        await here.connected()

        async def executed(name: str, **body: Any) -> None:
            ended = await ocpp.ended(await ocpp.command("KRV-1", name, **body))
            assert ended["status"] == "executed", ended

        await executed("set-availability", evse=1, operative=False)
        await here.status("Unavailable")
        await executed("set-availability", evse=1, operative=True)
        await here.status("Available")
        await executed("set-limit", evse=1, limit_ma=10_000, valid_s=600)
        await executed("send-local-list")
        until_then = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        reserve = {"evse": 1, "id_token": {"value": "04A1B2C3"}}
        await executed("reserve", **reserve, expires_at=until_then)
        await here.status("Reserved")

        await here.stop()
        await here.start()
        await here.connected()
        await here.status("Reserved")
        with pytest.raises(RefusedError, match="reserved for another"):
            await here.card("OTHER")
        await here.plug()
        await here.card("04A1B2C3")
        await here.charging(1)
        offered = here.agent.loop.told
        await until(lambda: offered[1].offered_ma == 10_000, "the limit to hold")
        assert offered[1].limited_by == "profile"
        await here.unplug()
        await here.idle()
        await here.delivered()
        assert {one.id_token.value for one in here.journal.local_list().entries} == {
            "04A1B2C3",
            "OTHER",
        }


SECRET = "a password of the station"


async def _known(ocpp: Ocpp) -> None:
    """The gateway knows the station and its password."""
    made = await ocpp.api.post("/stations", json={"station": "KRV-1"})
    assert made.status_code == 201, made.text
    wanted = {"password": SECRET}
    assert (await ocpp.api.put("/stations/KRV-1/ocpp-password", json=wanted)).status_code == 200


async def _demanded(ocpp: Ocpp, profile: int) -> None:
    """The gateway lets the station in with no less than this profile."""
    change = {"security_profile": profile}
    changed = await ocpp.api.patch("/stations/KRV-1/ocpp", json=change)
    assert changed.status_code == 200, changed.text


def _private(file: Path, content: str) -> None:
    file.touch(mode=0o600)
    file.write_text(content)


async def _certified(ocpp: Ocpp, folder: Path) -> None:
    csr, key = asked("KRV-1")
    made = await ocpp.api.post("/stations/KRV-1/ocpp-certificates", json={"csr": csr})
    assert made.status_code == 201, made.text
    (folder / "station.pem").write_text(made.json()["pem"])
    plain = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _private(folder / "station.key", plain.decode())


@pytest.mark.parametrize("profile", [2, 3])
async def test_each_security_profile(cloud_dsn: str, profile: int, tmp_path: Path) -> None:
    async with serving(cloud_dsn, tmp_path / "cloud", ocpp_tls_port=0) as ocpp:
        await _known(ocpp)
        options: dict[str, Any] = {}
        url = f"wss://localhost:{ocpp.gateway.tls_port}/ocpp"
        (tmp_path / "ca.pem").write_text((await ocpp.api.get("/ocpp-authority")).text)
        options["ca"] = "ca.pem"
        if profile == 3:
            await _certified(ocpp, tmp_path)
            options |= {"certificate": "station.pem", "key": "station.key"}
        else:
            _private(tmp_path / "password", "a wrong password")
            options["password"] = "password"  # a file's name
        await _demanded(ocpp, profile)
        async with site(tmp_path, "KRV-1") as here:
            here.configure(url, "1.6", **options)
            await here.start()
            if profile == 2:
                await until(lambda: "Check identity and password" in here.agent.ocpp.link, "401")
                (tmp_path / "password").write_text(f"{SECRET}\n")
            await here.connected()
            if profile == 2:
                await _renew_the_password(ocpp, here)


async def _renew_the_password(ocpp: Ocpp, here: Site) -> None:
    """The backend changes it: the station keeps it in its file, and comes back with it."""
    fresh = "another password now"
    change = {"password": fresh}
    assert (await ocpp.api.put("/stations/KRV-1/ocpp-password", json=change)).status_code == 200
    payload = {"key": "AuthorizationKey", "value": fresh.encode().hex()}
    told = await ocpp.api.post("/stations/KRV-1/ocpp/ChangeConfiguration", json=payload)
    assert told.json()["accepted"], told.text
    file = here.folder / "password"
    await until(lambda: file.read_text().strip() == fresh, "the new password")
    assert file.stat().st_mode & 0o777 == 0o600
    await until(lambda: here.agent.ocpp.link != "connected", "the old connection to end")
    await here.connected()
