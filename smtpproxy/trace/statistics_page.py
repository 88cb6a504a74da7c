"""Statistics as an HTML page without external files and without a script."""

from collections.abc import Iterator
from html import escape
from importlib.resources import files

from smtpproxy.timeline.labels import BAD, GOOD, QUIET
from smtpproxy.trace.statistics import Statistics
from smtpproxy.trace.statistics_report import APPROXIMATE, Row, Section, heading, sections

_STYLE = """
main { max-width: 1100px; }
h1 { margin: 6px 0 14px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
section { margin: 0 0 14px; padding: 8px 14px 12px; overflow-x: auto; }
h2 { font-size: 14px; font-weight: 600; margin: 4px 0 6px; }
table { table-layout: auto; }
th { position: static; }
th, td { text-align: right; padding: 3px 9px; }
td { border: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; unicode-bidi: isolate; }
td.bar { width: 45%; min-width: 90px; text-align: left; }
td.bar i { display: block; height: 11px; min-width: 1px; }
td.bar i { background: var(--work); border-radius: 2px; }
tr.detail td { color: var(--soft); font-size: 12px; text-align: left; white-space: pre-wrap; }
tr.detail td { padding: 0 9px 4px 18px; }
tr.detail td span { white-space: pre; margin-right: 14px; unicode-bidi: isolate; }
p { margin: 3px 0; }
.good { color: var(--good); } .bad { color: var(--bad); } .quiet { color: var(--soft); }
"""
_CLASSES = {GOOD: "good", BAD: "bad", QUIET: "quiet", "": ""}


def page(found: Statistics) -> str:
    """Return the page; text of peers is text in it, never markup."""
    style = (files("smtpproxy.admin") / "static" / "style.css").read_text(encoding="utf-8")
    title = escape(heading(found))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>smtpproxy: {title}</title>",
            f"<style>{style}{_STYLE}</style></head>",
            f'<body class="alone"><main><h1>{title}</h1>',
            *map(_section, sections(found)),
            f"<p>{APPROXIMATE}</p>" if found.approximate else "",
            "</main></body></html>\n",
        ]
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    if section.rows:
        names = "".join(f"<th>{escape(name)}</th>" for name in section.columns)
        parts.append(f"<table><thead><tr><th></th>{names}<th></th></tr></thead><tbody>")
        parts += [line for row in section.rows for line in _row(row, len(section.columns) + 2)]
        parts.append("</tbody></table>")
    parts += [f"<p>{escape(note)}</p>" for note in section.notes]
    return "\n".join([*parts, "</section>"])


def _row(row: Row, columns: int) -> Iterator[str]:
    values = "".join(f"<td>{escape(value)}</td>" for value in row.values)
    bar = f'<i style="width:{100 * row.share:.2f}%"></i>' if row.share else ""
    label = f'<td class="{_CLASSES[row.style]}">{escape(row.label)}</td>'
    yield f'<tr>{label}{values}<td class="bar">{bar}</td></tr>'
    for detail in row.details:
        spans = "".join(f"<span>{escape(part)}</span> " for part in detail)
        yield f'<tr class="detail"><td colspan="{columns}">{spans}</td></tr>'
