"""Alembic's entry: the connection comes from `cloud.kernel.migrate`, never from a file."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    transaction_per_migration=True,
    version_table_schema="public",
    version_table="karvon_migration",
)
with context.begin_transaction():
    context.run_migrations()
