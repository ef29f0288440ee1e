"""Instants at which a system test may kill this very process: before, between and after promises.

`KARVON_FAULT=agent.after_persist:3` sends SIGKILL to the agent when it passes that instant for the
third time; with `:3:block` it stands still there for ever, as code that waits for what never comes.
Nobody sets it in operation, and then a pass costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

BEFORE_PERSIST: Final = "agent.before_persist"
AFTER_PERSIST: Final = "agent.after_persist"
BEFORE_PUBLISH: Final = "agent.before_publish"
AFTER_ACK: Final = "agent.after_ack"
COMMISSION_STEP: Final = "commission.before_step_is_kept"
"""A step of a commissioning has had its effect; that it is done stands nowhere yet."""
COMMISSION_NOTED: Final = "commission.failsafe_noted"
CLAIM_ANSWERED: Final = "claim.answered"
"""The cloud has used the code up; nothing of its answer is on disk."""
COMMISSION_CLAIMED: Final = "commission.claimed"
DECOMMISSION_STEP: Final = "decommission.step_done"
SETTINGS_STEP: Final = "settings.before_step_is_kept"
SETTINGS_KEPT: Final = "settings.step_is_kept"
UPKEEP: Final = "agent.upkeep"
"""Passed once a second, whatever else happens."""


class Armed:
    """One armed instant and how many more passes it lets through."""

    def __init__(self, setting: str) -> None:
        self.instant, _, rest = setting.partition(":")
        passes, _, deed = rest.partition(":")
        self.left = int(passes or 1)
        self.blocks = deed == "block"

    def strikes(self, instant: str) -> bool:
        """Count a pass; True at the one that must not survive."""
        if instant != self.instant:
            return False
        self.left -= 1
        return self.left == 0


_armed = Armed(setting) if (setting := os.environ.get("KARVON_FAULT")) else None


def reach(instant: str) -> None:
    """Die by SIGKILL, or stand still, if this instant is armed and its count is reached."""
    if _armed is not None and _armed.strikes(instant):
        if _armed.blocks:
            threading.Event().wait()
        os.kill(os.getpid(), signal.SIGKILL)
