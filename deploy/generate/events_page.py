"""Makes deploy/reference/events.md: every log event and its fields."""

from collections.abc import Iterable

from markdown import code, page, table

from smtpproxy.log.events import EVENTS, FIELDS, OPTIONAL, SESSION, Event

_ALWAYS = ", ".join(code(each) for each in SESSION if each not in OPTIONAL)
_INTRODUCTION = f"""\
With `log.format = "json"` each line is an object with `timestamp`, `level`, `event`, the fields
below and `instance`, the name of this instance of the service (the setting of the same name). Each
field has the same type and meaning in every event that has it. What to do about an
event: deploy/troubleshooting.md.

Every event of a session begins with {_ALWAYS};
a session with an injected fault has {code("fault")}, too.
"""


def events_page() -> str:
    """Return the page."""
    of_sessions = [each for each in EVENTS.values() if each.fields[: len(SESSION)] == SESSION]
    of_the_service = [each for each in EVENTS.values() if each not in of_sessions]
    return page(
        "Log events",
        [
            _INTRODUCTION,
            "## Events of a session\n",
            _events(of_sessions, "further fields", len(SESSION)),
            "## Events of the service\n",
            _events(of_the_service, "fields", 0),
            "## Fields\n",
            table(
                ("field", "type", "meaning"),
                [
                    (code(name), " or ".join(field.types), field.meaning + _optional(name))
                    for name, field in FIELDS.items()
                ],
            ),
        ],
    )


def _events(events: Iterable[Event], fields: str, first: int) -> str:
    return table(
        ("event", "level", "meaning", fields),
        [
            (
                code(each.name),
                each.level,
                each.meaning,
                ", ".join(map(code, each.fields[first:])),
            )
            for each in events
        ],
    )


def _optional(name: str) -> str:
    return " Left out where there is nothing to report." if name in OPTIONAL else ""
