"""The cloud's settings: from the environment (`KARVON_*`), secrets also from files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class CloudConfig(BaseSettings):
    """Read once at the start; what the command line says goes before the environment."""

    model_config = SettingsConfigDict(env_prefix="KARVON_", extra="ignore", frozen=True)

    data_dir: Path = Field(Path("karvon-data"), description="everything the embedded servers keep")
    host: str = Field("127.0.0.1", description="address to listen on, for HTTP and MQTT")
    public_host: str = Field("", description="name that agents reach us by; host when empty")
    http_port: int = Field(8080, ge=0, le=65535, description="0: any free one")
    mqtt_port: int = Field(0, ge=0, le=65535, description="0: a free one, kept in the data folder")
    registration: Literal["open", "pending", "known"] = "known"
    admin_key_file: Path | None = None
    database_url: SecretStr | None = Field(None, description="instead of the embedded PostgreSQL")
    database_url_file: Path | None = None
    mqtt_url: SecretStr | None = Field(None, description="mqtts://user:password@host:port")
    mqtt_url_file: Path | None = None
    mqtt_ca_file: Path | None = Field(None, description="authority of that broker's certificate")
    mosquitto_password_file: Path | None = Field(None, description="written for that broker")
    mosquitto_pid_file: Path | None = Field(None, description="who gets SIGHUP after a change")
    telemetry_days: int = Field(400, ge=1, description="how long samples are kept")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _one_source(self) -> CloudConfig:
        for name in ("database_url", "mqtt_url"):
            if getattr(self, name) and getattr(self, f"{name}_file"):
                raise ValueError(f"give {name} or {name}_file, not both")
        return self

    def secret(self, name: Literal["database_url", "mqtt_url"]) -> str | None:
        """The secret, from the setting itself or from its file. Raises OSError."""
        value: SecretStr | None = getattr(self, name)
        file: Path | None = getattr(self, f"{name}_file")
        if file is not None:
            return file.read_text().strip()
        return value.get_secret_value() if value is not None else None

    @property
    def reachable_host(self) -> str:
        """What agents are told to connect to."""
        return self.public_host or self.host
