"""Whether the cloud's broker and an OCPP backend let this station in: a login, and nothing said."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Final

import aiomqtt
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from edge_agent.config import Config, ConfigError, OcppPart, UplinkPart
from edge_agent.main import mqtt_settings
from edge_agent.uplink import mqtt
from protocols.agent_link import down_filter, escape

DEADLINE_S: Final = 20.0


class NotReachedError(Exception):
    """No link; the text says what happened, why, and what to do."""


async def log_in_to_broker(config: Config, part: UplinkPart) -> str:
    """Connect and subscribe as the agent would; what was reached. Raises NotReachedError."""
    try:
        settings = mqtt_settings(config, part)
    except ConfigError as error:
        raise NotReachedError(str(error)) from error
    name = escape(config.station)
    try:
        async with asyncio.timeout(DEADLINE_S):
            async with aiomqtt.Client(
                settings.host,
                settings.port,
                identifier=f"karvon-{name}",
                username=name,
                password=settings.password,
                timeout=settings.deadline_s,
                tls_context=mqtt.tls_context(settings),
            ) as client:
                await client.subscribe(down_filter(config.station), qos=1)
    except (*mqtt.LINK_TROUBLE, TimeoutError) as error:
        raise NotReachedError(mqtt.explain(settings, error)) from error
    return f"{settings.host}:{settings.port}"


async def log_in_to_backend(config: Config, part: OcppPart) -> str:
    """Open the WebSocket as the agent would, and close it. Raises NotReachedError."""
    from edge_agent.uplink.ocpp import websocket
    from edge_agent.uplink.ocpp.assembly import settings_of

    try:
        settings = settings_of(config, part)
    except ConfigError as error:
        raise NotReachedError(str(error)) from error
    try:
        async with asyncio.timeout(DEADLINE_S):
            socket = await connect(
                settings.address,
                ssl=websocket.tls_context(settings),
                subprotocols=[settings.version.value],  # type: ignore[list-item]  # a NewType of str
                additional_headers=websocket.login(settings),
                user_agent_header="karvon",
                proxy=None,
                open_timeout=settings.deadline_s,
                close_timeout=2,
            )
            spoken = socket.subprotocol
            with suppress(ConnectionClosed):  # it was there, which was the question
                await socket.close()
    except (OSError, ssl.SSLError, InvalidHandshake, InvalidURI, TimeoutError) as error:
        raise NotReachedError(websocket.explain(settings, error)) from error
    told = "" if spoken else "; it names no subprotocol"
    return f"{settings.address} ({settings.version.value}, profile {part.profile}){told}"
