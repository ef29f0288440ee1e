"""What survives on the controller: transactions, registers, limits, and the outbox to the cloud.

Two SQLite files, so that a flood of telemetry never stands in the way of billing:
`billing.sqlite` commits durably before anything is acted on or sent; `telemetry.sqlite` is
written once in a while, bounded in bytes, and may lose its last minute in a crash.
"""

from edge_agent.journal.billing import SessionRecord
from edge_agent.journal.deliveries import PendingFact, RefusedFact
from edge_agent.journal.files import JournalBudget, JournalError
from edge_agent.journal.journal import Journal
from edge_agent.journal.view import JournalView

__all__ = [
    "Journal",
    "JournalBudget",
    "JournalError",
    "JournalView",
    "PendingFact",
    "RefusedFact",
    "SessionRecord",
]
