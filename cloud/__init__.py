"""The cloud: bounded contexts over one PostgreSQL, wired by `cloud.main`."""
