"""Owns backups: everything that makes a cloud the same cloud again, in one file.

A backup is logical: rows, not database files. So it moves between embedded PostgreSQL and a server
with TimescaleDB, and between PostgreSQL's major versions. It is taken beside a running cloud.
"""

from cloud.kernel.backup.archive import BadBackup, Manifest, Reader, Writer, verify
from cloud.kernel.backup.catalogue import Unprepared
from cloud.kernel.backup.dump import dump
from cloud.kernel.backup.folder import Target, database_in, files_in
from cloud.kernel.backup.load import load

__all__ = [
    "BadBackup",
    "Manifest",
    "Reader",
    "Target",
    "Unprepared",
    "Writer",
    "database_in",
    "dump",
    "files_in",
    "load",
    "verify",
]
