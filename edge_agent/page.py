"""The local page: what the terminal view shows, as plain HTML that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Final
from urllib.parse import quote

from edge_agent import shown
from edge_agent.shown import Row, Told
from edge_agent.wording import LANGUAGES, Wording

REFRESH_S: Final = 5
SHOWN_OF_A_TOKEN: Final = 4
NAMES: Final = {"uz": "O'zbekcha", "ru": "Русский", "en": "English", "de": "Deutsch"}
STYLE: Final = """
body{font:16px/1.4 sans-serif;margin:1rem;max-width:70rem;color:#111;background:#fff}
nav a{margin-right:1rem}table{border-collapse:collapse;width:100%;margin-bottom:1.5rem}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #ccc;vertical-align:top}
.ok td.s{color:#060}.waiting td.s{color:#850}.trouble td.s{color:#b00;font-weight:bold}
.off{color:#666}dl{margin:.3rem 0}dt{font-weight:bold;float:left;clear:left;margin-right:.5rem}
@media(prefers-color-scheme:dark){body{color:#eee;background:#111}a{color:#8cf}
.ok td.s{color:#6c6}.waiting td.s{color:#fb5}.trouble td.s{color:#f77}.off{color:#999}}
"""


def main_page(status: Told, sessions: Sequence[Told], words: Wording, at_s: float) -> str:
    """Links with advice, EVSEs, the newest sessions; of an id token only its end is shown."""
    status = {**status, "sessions": [_masked(each) for each in status["sessions"]]}
    told = [{**each, "id_token": mask(each["id_token"] or "")} for each in sessions]
    parts = [
        _table(words("ui", "links"), words, shown.LINKS, shown.links(status, words), coloured=2),
        _table(words("ui", "evses"), words, shown.EVSES, shown.evses(status, words), coloured=1),
        _table(words("ui", "sessions"), words, shown.SESSIONS, shown.sessions(told, words)),
    ]
    return _page(shown.headline(status, words), "".join(parts), words, "/", at_s)


def registers_page(
    device: str, devices: Sequence[str], dumps: Any, words: Wording, at_s: float
) -> str:
    """One device, read when the page is asked for; the others are a link away."""
    chosen = " ".join(
        f'<a href="/registers?device={quote(each)}&amp;lang={words.language}">{escape(each)}</a>'
        for each in devices
    )
    body = f"<p>{escape(words('ui', 'device'))}: {chosen}</p>"
    if isinstance(dumps, dict):
        body += f"<p>{escape(str(dumps.get('error', '')))}</p>"
    elif not dumps:
        body += f"<p>{escape(words('ui', 'no_registers'))}</p>"
    else:
        body += _table(device, words, shown.REGISTERS, shown.registers(dumps), coloured=0)
    path = f"/registers?device={quote(device)}"
    return _page(words("ui", "registers"), body, words, path, at_s)


def mask(token: str) -> str:
    """Enough to tell two cards apart, too little to make a copy."""
    if not token:
        return ""
    return f"…{token[-SHOWN_OF_A_TOKEN:]}" if len(token) > 2 * SHOWN_OF_A_TOKEN else "…"


def _masked(session: Told) -> Told:
    transaction = session["transaction"]
    token = transaction["id_token"]
    hidden = {**token, "value": mask(token["value"])} if token else None
    return {**session, "transaction": {**transaction, "id_token": hidden}}


def _page(title: str, body: str, words: Wording, path: str, at_s: float) -> str:
    joint = "&" if "?" in path else "?"
    languages = "".join(
        f'<a href="{escape(f"{path}{joint}lang={each}")}" lang="{each}">{NAMES[each]}</a>'
        for each in LANGUAGES
    )
    at = f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return (
        f'<!doctype html><html lang="{words.language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<nav>{_places(words)}{languages}</nav><h1>{escape(title)}</h1>"
        f"<p>{escape(words('ui', 'as_of', at=at, n=REFRESH_S))}</p>{body}</body></html>"
    )


def _places(words: Wording) -> str:
    lang = words.language
    return (
        f'<a href="/?lang={lang}">{escape(words("ui", "links"))}</a>'
        f'<a href="/registers?lang={lang}">{escape(words("ui", "registers"))}</a>'
    )


def _table(
    title: str,
    words: Wording,
    columns: Sequence[str],
    rows: Sequence[Row],
    coloured: int | None = None,
) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in shown.heads(words, columns))
    body = "".join(_row(row, words, coloured) for row in rows)
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _row(row: Row, words: Wording, coloured: int | None) -> str:
    cells = [escape(cell) for cell in row.cells]
    if row.why and row.state != "ok":
        cells[-1] += (
            f"<dl><dt>{escape(words('ui', 'why'))}</dt><dd>{escape(row.why)}</dd>"
            f"<dt>{escape(words('ui', 'todo'))}</dt><dd>{escape(row.todo)}</dd></dl>"
        )
    told = "".join(
        f'<td class="s">{cell}</td>' if place == coloured else f"<td>{cell}</td>"
        for place, cell in enumerate(cells)
    )
    return f'<tr class="{row.state}">{told}</tr>'
