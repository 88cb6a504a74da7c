"""Exports a session as an HTML page with the drawing of the live page, without external files.

The page does not contain message content.
"""

import dataclasses
import re
from html import escape
from importlib.resources import files

import msgspec
from msgspec.structs import replace

from smtpproxy.trace.reader import RecordedSession, for_people
from smtpproxy.trace.records import Gap

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>smtpproxy: session @name@</title>
<style>@style@</style></head>
<body class="alone"><main><section id="picture" aria-live="off"></section></main>
<script type="application/json" id="records">@records@</script>
<script>@script@
const records = JSON.parse(document.getElementById("records").textContent);
drawSession(document.getElementById("picture"), records);
</script></body></html>
"""


FIRST_EXCHANGES, LAST_EXCHANGES = 4000, 1000
"""The most exchanges on the page, since a browser takes long to draw more."""


def page(session: RecordedSession) -> str:
    """Return the page; text of peers is data in it, never markup."""
    session = for_people(_drawn(session))
    static = files("smtpproxy.admin") / "static"
    records = msgspec.json.encode(session.records).decode()
    return _fill(
        name=escape(session.id),
        style=(static / "style.css").read_text(encoding="utf-8"),
        script=(static / "timeline.js").read_text(encoding="utf-8"),
        records=records.replace("<", "\\u003c").replace("\u2028", "\\u2028"),
    )


def _drawn(session: RecordedSession) -> RecordedSession:
    """Return what is drawn of a session."""
    exchanges = [replace(each, content="", content_received="") for each in session.exchanges]
    missing = len(exchanges) - FIRST_EXCHANGES - LAST_EXCHANGES
    if missing <= 0:
        return dataclasses.replace(session, exchanges=exchanges)
    not_kept = session.gap.exchanges if session.gap else 0
    return dataclasses.replace(
        session,
        exchanges=exchanges[:FIRST_EXCHANGES] + exchanges[-LAST_EXCHANGES:],
        gap=Gap(session.id, not_kept + missing),
        before_gap=FIRST_EXCHANGES,
    )


def _fill(**parts: str) -> str:
    """Insert each part into the template; parts contain braces and percent signs."""
    pieces = re.split(r"@(\w+)@", _PAGE)
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))
