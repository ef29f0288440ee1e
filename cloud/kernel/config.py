"""The cloud's settings: from the environment (`KARVON_*`), secrets also from files."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from protocols.agent_link import SHARDS

_SERVERS: Final = ("database_url", "mqtt_url")


class CloudConfig(BaseSettings):
    """Read once at the start; what the command line says goes before the environment."""

    model_config = SettingsConfigDict(env_prefix="KARVON_", extra="ignore", frozen=True)

    data_dir: Path = Field(Path("karvon-data"), description="everything the embedded servers keep")
    host: str = Field("127.0.0.1", description="address to listen on, for HTTP and MQTT")
    public_host: str = Field("", description="name that agents reach us by; host when empty")
    http_port: int = Field(8080, ge=0, le=65535, description="port of REST; 0: any free one")
    mqtt_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="embedded broker's; 0: a free one, kept",
    )
    registration: Literal["open", "pending", "known"] = Field(
        "known", description="what happens to stations that nobody announced"
    )
    admin_key_file: Path | None = Field(None, description="gets a working admin key")
    database_url: SecretStr | None = Field(None, description="instead of the embedded PostgreSQL")
    database_url_file: Path | None = Field(None, description="file that holds that URL")
    mqtt_url: SecretStr | None = Field(
        None, description="instead of the embedded broker: mqtts://user:password@host:port"
    )
    mqtt_url_file: Path | None = Field(None, description="file that holds that URL")
    mqtt_ca_file: Path | None = Field(None, description="authority of that broker's certificate")
    mosquitto_password_file: Path | None = Field(
        None, description="written for that broker; default: mosquitto.passwd in the data folder"
    )
    mosquitto_pid_file: Path | None = Field(
        None, description="pid file of that broker, which gets SIGHUP after a change"
    )
    ocpp_port: int | None = Field(
        None, ge=0, le=65535, description="port for stations that speak OCPP; none: not served"
    )
    ocpp_tls_port: int | None = Field(
        None, ge=0, le=65535, description="the same with TLS, for security profiles 2 and 3"
    )
    ocpp_heartbeat_s: int = Field(
        300, ge=10, le=86_400, description="seconds between the heartbeats that stations send"
    )
    ocpp_boot_wait_s: int = Field(
        30,
        ge=0,
        le=3600,
        description="seconds until a station that came without a boot is asked for it; 0: never",
    )
    ocpp_cost_every_s: int = Field(
        60,
        ge=0,
        le=3600,
        description="seconds at least between two costs told to a 2.0.1 station; 0: none is told",
    )
    ocpp_frame_days: int = Field(
        14, ge=1, le=3650, description="days that every OCPP message is kept for reading"
    )
    ocpp_least_profile: int = Field(
        0, ge=0, le=3, description="security profile that every OCPP station must reach at least"
    )
    ocpp_organization: str = Field(
        "Karvon",
        min_length=1,
        max_length=64,
        description="the operator's name in stations' certificates",
    )
    ocpp_certificate_days: int = Field(
        365, ge=1, le=3650, description="days that a station's certificate lives"
    )
    ocpp_ca_file: Path | None = Field(
        None,
        description="authority that signs stations' certificates, with those above it; default:"
        " our own in the data folder",
    )
    ocpp_ca_key_file: Path | None = Field(None, description="that authority's key")
    ocpp_certificate_file: Path | None = Field(
        None, description="certificate of the OCPP port, with its chain; default: that authority's"
    )
    ocpp_key_file: Path | None = Field(None, description="that certificate's key")
    role: Literal["all", "ingest", "api", "gateway"] = Field(
        "all",
        description="ingest: only the agents' link; gateway: only OCPP; api: only REST; all",
    )
    shards: str = Field(
        "",
        pattern=r"^$|^[0-9]{1,2}(-[0-9]{1,2})?(,[0-9]{1,2}(-[0-9]{1,2})?)*$",
        description="agents' topics that an ingest process takes, e.g. 0-31; empty: all 64",
    )
    telemetry_days: int = Field(
        400, ge=1, le=36500, description="days that samples are kept, hot and compacted"
    )
    telemetry_hot_days: int = Field(
        2, ge=1, le=365, description="days after which a closed day is compacted"
    )
    telemetry_minute_days: int = Field(
        90, ge=2, le=36500, description="days that roll-ups by minute are kept"
    )
    telemetry_hour_days: int = Field(
        3650, ge=2, le=36500, description="days that roll-ups by hour are kept"
    )
    telemetry_compaction: Literal["blocks", "timescale"] = Field(
        "blocks", description="timescale: TimescaleDB's own compression, if licensed"
    )
    ota_url: str = Field(
        "",
        max_length=300,
        pattern=r"^$|^https?://[^/?#]+(/[^?#]*[^/?#])?$",
        description="this cloud's address as stations that speak OCPP fetch firmware from it, e.g."
        " https://cloud.example; default: where HTTP is served",
    )
    ota_folder: Path | None = Field(
        None,
        description="where images lie; API processes share it; default: ota in the data folder",
    )
    ota_s3_url: str = Field(
        "",
        max_length=300,
        pattern=r"^$|^https?://[^/?#]+/[^?#]*[^/?#]$",
        description="S3-compatible store for images, with bucket and prefix, e.g."
        " https://s3.example/karvon/ota; the folder then only keeps what is asked for",
    )
    ota_s3_region: str = Field("us-east-1", max_length=60, description="that store's region")
    ota_s3_key_file: Path | None = Field(
        None, description="file with that store's key, as KEY_ID:SECRET"
    )
    ota_upload_keep_h: int = Field(
        72,
        ge=1,
        le=8760,
        description="hours that an upload of a release's file may rest before it is removed",
    )
    ota_online_key_file: Path | None = Field(
        None,
        description="Ed25519 key (PEM) that signs how fresh releases are; default: made in the data"
        " folder",
    )
    ota_director_key_file: Path | None = Field(
        None,
        description="Ed25519 key (PEM) that signs who gets what; default: made in the data folder",
    )
    notice_days: int = Field(
        90, ge=1, le=36500, description="days that OCPP stations' notices are kept"
    )
    transfer_hosts: str = Field(
        "",
        description="internal hosts that stations may get firmware from or bring logs to, with"
        " commas: names, addresses, networks such as 10.1.0.0/16",
    )
    transaction_available_minutes: int = Field(
        10,
        ge=1,
        le=1440,
        description="minutes after which an open transaction of an available EVSE is over",
    )
    transaction_silent_hours: int = Field(
        24,
        ge=1,
        le=8760,
        description="hours of silence after which one of an idle EVSE is over",
    )
    transaction_gone_days: int = Field(
        7, ge=1, le=365, description="days of silence after which any open transaction is over"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR"
    )

    @model_validator(mode="after")
    def _one_source(self) -> CloudConfig:
        for name in _SERVERS:
            if getattr(self, name) and getattr(self, f"{name}_file"):
                raise ValueError(f"give {name} or {name}_file, not both")
        return self

    @model_validator(mode="after")
    def _pairs(self) -> CloudConfig:
        for name, key in (
            ("ocpp_ca_file", "ocpp_ca_key_file"),
            ("ocpp_certificate_file", "ocpp_key_file"),
            ("ota_s3_url", "ota_s3_key_file"),
        ):
            if bool(getattr(self, name)) != bool(getattr(self, key)):
                raise ValueError(f"give {name} and {key} together")
        return self

    @model_validator(mode="after")
    def _apart(self) -> CloudConfig:
        self.shard_ids()
        outside = all(getattr(self, n) or getattr(self, f"{n}_file") for n in _SERVERS)
        if (self.role != "all" or self.shards) and not outside:
            raise ValueError(
                "one process of several needs a database and a broker of its own: give"
                " database_url and mqtt_url"
            )
        return self

    def shard_ids(self) -> list[str]:
        """The shards as topics write them; none means all. Raises ValueError."""
        numbers: set[int] = set()
        for part in filter(None, self.shards.split(",")):
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
        if numbers and max(numbers) >= SHARDS:
            raise ValueError(f"shards go from 0 to {SHARDS - 1}")
        return [f"{number:02x}" for number in sorted(numbers)]

    def secret(self, name: Literal["database_url", "mqtt_url"]) -> str | None:
        """The secret, from the setting itself or from its file. Raises OSError."""
        value: SecretStr | None = getattr(self, name)
        file: Path | None = getattr(self, f"{name}_file")
        if file is not None:
            return file.read_text().strip()
        return value.get_secret_value() if value is not None else None

    @property
    def serves_ocpp(self) -> bool:
        """Whether stations may connect to this process over OCPP."""
        some = self.ocpp_port is not None or self.ocpp_tls_port is not None
        return some and self.role in {"all", "gateway"}

    @property
    def reachable_host(self) -> str:
        """What agents are told to connect to."""
        return self.public_host or self.host
