"""Schema migrations: alembic with plain SQL steps, one branch per module.

Each module keeps its revisions in `cloud/<module>/migrations/`; a revision's first file carries the
module's name as branch label and `depends_on` names what it stands on. Migrations expand first and
contract a release later, so the previous release runs on the new schema.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, pool
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from cloud.kernel.errors import Unavailable

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = 0x6B6172766F6E  # "karvon": one migration at a time, whoever starts it

logger = logging.getLogger(__name__)


def modules() -> list[str]:
    """The modules that own a schema, kernel first."""
    found = sorted(path.parent.name for path in ROOT.glob("*/migrations"))
    return sorted(found, key=lambda name: name != "kernel")


def known_revisions() -> set[str]:
    """Every revision that this release can make."""
    return {
        one.revision for one in ScriptDirectory.from_config(_config(modules())).walk_revisions()
    }


def migrate(dsn: str, only: Iterable[str] | None = None, to: Iterable[str] = ("heads",)) -> None:
    """Bring every module's schema to its newest revision, in one transaction per revision.

    `dsn` is the owner's connection; the role must be allowed to create roles the first time. `to`
    names revisions to stop at. Raises Unavailable when there is no connection to be had.
    """
    names = modules() if only is None else list(only)
    config = _config(names)
    engine = create_engine(_url(dsn), poolclass=pool.NullPool)
    try:
        connected = engine.connect()
    except OperationalError as error:
        raise Unavailable(f"the database is out of reach: {str(error.orig).strip()}") from error
    with connected as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK})")
        connection.commit()
        try:
            config.attributes["connection"] = connection
            for revision in to:
                command.upgrade(config, revision)
        finally:
            connection.rollback()
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({LOCK})")
            connection.commit()
    logger.info("schema is up to date: %s", ", ".join(names))


def _config(names: Iterable[str]) -> Config:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "kernel" / "alembic"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option(
        "version_locations", "\n".join(str(ROOT / name / "migrations") for name in names)
    )
    return config


def _url(dsn: str) -> URL:
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    return URL.create("postgresql+psycopg", query=parts)
