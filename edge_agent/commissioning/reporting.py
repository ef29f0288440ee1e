"""The sticker with its QR code, and the report that the installer leaves behind."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Final

import msgspec
import segno

from edge_agent.commissioning.dialog import Dialog
from edge_agent.commissioning.progress import Check, Progress, now_text
from edge_agent.commissioning.work import Work
from edge_agent.private import sync_folder
from edge_agent.shown import amperes
from protocols.agent_link import escape

SCALE: Final = 10
BORDER: Final = 4
PUBLIC: Final = 0o644


async def label(work: Work) -> list[Check]:
    """The code on the charger's sticker: the station's identity, or an address made of it."""
    dialog, station = work.dialog, work.progress.station

    def sticker(text: str) -> str:
        try:
            content = text.format(station=station)
        except (KeyError, IndexError, ValueError):
            raise ValueError(f"'{text}': the only name in braces is {{station}}") from None
        if not content.strip():
            raise ValueError("a sticker says something")
        return content

    content = dialog.ask(
        "--sticker", "ask_sticker", sticker, given=work.options.sticker, default="{station}"
    )
    code = segno.make(content, micro=False)
    shown = io.StringIO()
    code.terminal(shown, border=1, compact=True)
    dialog.console.print(shown.getvalue(), highlight=False, markup=False, soft_wrap=True)
    folder = work.reports
    folder.mkdir(parents=True, exist_ok=True)
    name = _name("sticker", station)
    for kind in ("svg", "png"):
        made = io.BytesIO()
        code.save(made, kind=kind, scale=SCALE, border=BORDER)
        put(folder / f"{name}.{kind}", made.getvalue())
    work.progress.sticker = content
    dialog.say("sticker_saved", path=folder / f"{name}.svg")
    return [Check(step="label", what=dialog.text("sticker"), verdict="pass", text=content)]


def _name(what: str, station: str) -> str:
    """A station's identity may hold what no file's name may."""
    return f"{what}-{escape(station)}"


def put(path: Path, content: bytes) -> None:
    """Written whole or not at all; anybody may read it. Raises OSError."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    draft.chmod(PUBLIC)
    draft.replace(path)
    sync_folder(path.parent)


def passed(progress: Progress) -> bool:
    return all(check.verdict != "fail" for check in progress.checks)


def as_plain(progress: Progress) -> dict[str, Any]:
    """For programs: the same in every language but for the checks' texts; no secret is in it."""
    return {
        "station": progress.station,
        "installer": progress.installer,
        "began": progress.began,
        "finished": now_text(),
        "passed": passed(progress),
        "devices": msgspec.to_builtins(progress.devices),
        "failsafe_before": msgspec.to_builtins(progress.before),
        "failsafe": msgspec.to_builtins(progress.armed),
        "limits": dict(progress.limits),
        "uplinks": list(progress.uplinks),
        "cloud": progress.claimed or None,
        "certificate_until": progress.certificate_until,
        "test_charge": msgspec.to_builtins(progress.charged),
        "sticker": progress.sticker,
        "checks": msgspec.to_builtins(progress.checks),
    }


def as_markdown(dialog: Dialog, progress: Progress) -> str:
    text, marks = dialog.text, {"pass": "✓", "warn": "!", "fail": "✗"}
    outcome = text("report_passed" if passed(progress) else "report_failed")
    lines = [
        f"# {text('report')}: {_cell(progress.station)}",
        "",
        f"**{outcome}**",
        "",
        *_table(
            (text("installer"), _cell(progress.installer)),
            [
                (text("began"), progress.began),
                (text("finished"), now_text()),
                (text("cloud"), _cell(progress.claimed or "-")),
                (text("certificate_until"), progress.certificate_until or "-"),
                (text("sticker"), _cell(progress.sticker)),
            ],
        ),
        f"## {text('step_devices')}",
        "",
        *_table(
            (text("device"), text("profile"), text("serial"), text("firmware"), text("address")),
            [
                (one.name, one.profile, one.serial or "-", one.firmware or "-", one.address)
                for one in progress.devices
            ],
        ),
        f"## {text('step_failsafe')}",
        "",
        *_table(
            (text("device"), text("timeout"), text("fallback")),
            [
                (
                    one.board,
                    f"{one.timeout_s} s" if one.has else text("no_failsafe_short"),
                    amperes(one.current_ma) if one.has else "-",
                )
                for one in progress.armed
            ],
        ),
        f"## {text('step_limits')}",
        "",
        *_table((text("limit"), text("value")), list(progress.limits.items())),
        f"## {text('checks')}",
        "",
        *_table(
            ("", text("check"), text("result")),
            [(marks[one.verdict], one.what, one.text) for one in progress.checks],
        ),
    ]
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    made = [head, tuple("---" for _ in head), *rows]
    return [*(f"| {' | '.join(map(_cell, row))} |" for row in made), ""]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def write(work: Work) -> tuple[Path, Path]:
    """The report as Markdown and JSON. Raises OSError."""
    folder = work.reports
    folder.mkdir(parents=True, exist_ok=True)
    name = _name("report", work.progress.station)
    people, programs = folder / f"{name}.md", folder / f"{name}.json"
    put(people, as_markdown(work.dialog, work.progress).encode())
    plain = msgspec.json.format(msgspec.json.encode(as_plain(work.progress)), indent=2)
    put(programs, plain + b"\n")
    return people, programs
