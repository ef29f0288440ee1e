"""A commissioning from the first question to the report, going on where it was left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from edge_agent import faultpoints
from edge_agent.commissioning.charging import charge
from edge_agent.commissioning.choosing import devices
from edge_agent.commissioning.dialog import CommissionError
from edge_agent.commissioning.progress import STEPS, Check, now_text
from edge_agent.commissioning.registering import registration
from edge_agent.commissioning.reporting import label, passed, write
from edge_agent.commissioning.safety import failsafe, limits
from edge_agent.commissioning.work import Work

Step = Callable[[Work], Awaitable[list[Check]]]
WORKS: Final[dict[str, Step]] = {
    "devices": devices,
    "failsafe": failsafe,
    "limits": limits,
    "registration": registration,
    "charge": charge,
    "label": label,
}
assert tuple(WORKS) == STEPS  # the report and the state file go by these names


async def commission(work: Work) -> bool:
    """Every step that is not done, then the report; whether all checks passed.

    Raises CommissionError where it cannot go on, ConfigError, OSError; what is done stays done.
    """
    progress, dialog = work.progress, work.dialog
    if not progress.began:
        progress.began = now_text()
    if progress.done:
        names = ", ".join(dialog.text(f"step_{step}") for step in STEPS if step in progress.done)
        dialog.say("goes_on", done=names)
    if work.options.installer is not None or not progress.installer:
        progress.installer = dialog.ask(
            "--installer", "ask_installer", _name, given=work.options.installer
        )
    work.save()
    for number, step in enumerate(STEPS, start=1):
        if step not in progress.done:
            await do_step(work, step, number)
    people, programs = write(work)
    _sum_up(work)
    dialog.say("report_saved", path=people, json=programs)
    return passed(progress)


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("a report names who answers for it")
    return text.strip()


async def do_step(work: Work, step: str, number: int) -> None:
    """A step whose checks fail is tried again at the next start; the others go on meanwhile."""
    work.dialog.step(number, len(STEPS), f"step_{step}")
    checks = await WORKS[step](work)
    faultpoints.reach(faultpoints.COMMISSION_STEP)
    work.progress.put(step, checks)
    if all(check.verdict != "fail" for check in checks):
        work.progress.done[step] = now_text()
    work.save()
    for check in checks:
        work.dialog.mark(check.verdict, f"{check.what}: {check.text}")


def _sum_up(work: Work) -> None:
    dialog, failed = work.dialog, [one for one in work.progress.checks if one.verdict == "fail"]
    dialog.console.print()
    if not failed:
        dialog.say("all_passed", station=work.progress.station)
        return
    dialog.warn("some_failed", n=len(failed))


def checked_station(text: str) -> str:
    """Raises CommissionError for what no station can be called."""
    from protocols.agent_link import LinkError, escape

    try:
        escape(text)
    except LinkError as error:
        raise CommissionError(f"--station: {error}", 2) from error
    return text
