"""A session as a page of its own: the picture of the live page, and nothing from outside."""

import re
from html import escape
from importlib.resources import files

import msgspec

from smtpproxy.trace.reader import RecordedSession, for_people

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


def page(session: RecordedSession) -> str:
    """Return the page; whatever peers sent stands in it as data, never as markup."""
    session = for_people(session)
    static = files("smtpproxy.admin") / "static"
    records = msgspec.json.encode(session.records).decode()
    return _fill(
        name=escape(session.id),
        style=(static / "style.css").read_text(encoding="utf-8"),
        script=(static / "timeline.js").read_text(encoding="utf-8"),
        records=records.replace("<", "\\u003c").replace("\u2028", "\\u2028"),
    )


def _fill(**parts: str) -> str:
    """Put each part in its place; parts hold braces and percent signs."""
    pieces = re.split(r"@(\w+)@", _PAGE)
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))
