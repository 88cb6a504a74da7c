"""Checks log lines against the catalogue of log events."""

from collections.abc import Mapping
from typing import Any

from smtpproxy.log.events import EVENTS, FIELDS, OPTIONAL, Type

_ALWAYS = ("timestamp", "level", "event", "instance")
_TYPES: dict[Type, type | tuple[type, ...]] = {
    "text": str,
    "whole number": int,
    "number": (int, float),
    "true or false": bool,
    "list of texts": list,
    "list of whole numbers": list,
    "null": type(None),
}


def faults(line: Mapping[str, Any]) -> list[str]:
    """Return how a log line, with values as in JSON, differs from the catalogue."""
    event = EVENTS.get(line["event"])
    if event is None:
        return [f"{line['event']} is not in the catalogue"]
    found = []
    level = event.rewritten_level if line.get("rewritten") else event.level
    if line["level"] != level and event.name != "library_message":
        found.append(f"{event.name} has level {line['level']}")
    fields = [name for name in line if name not in _ALWAYS]
    found += [f"{event.name} has a field {name}" for name in fields if name not in event.fields]
    missing = set(event.fields) - set(fields) - OPTIONAL
    found += [f"{event.name} has no field {name}" for name in sorted(missing)]
    for name in set(fields) & FIELDS.keys():
        if not any(isinstance(line[name], _TYPES[each]) for each in FIELDS[name].types):
            found.append(f"{event.name} has {name}={line[name]!r}")
    return found


def client_of(line: Mapping[str, Any]) -> str:
    """Return the client of a log line, as `192.0.2.1:4711`."""
    return f"{line['client_ip']}:{line['client_port']}"
