"""The findings of a probe as JSON, for programs: every name is that of an attribute of `Findings`.

A reply is `{"code", "text", "seconds"}`; its text, and what else the server sent, is escaped as in
the log, so that no value drives a terminal.
"""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import singledispatch

from smtpproxy.config.address import Address
from smtpproxy.probe.findings import Findings
from smtpproxy.probe.pipelining_checks import GroupResult
from smtpproxy.probe.smtp_connection import ProbeReply
from smtpproxy.probe.tls_checks import TlsFindings
from smtpproxy.text.escaping import printable


def text(found: Findings, settings: list[str]) -> str:
    """Return findings as JSON, indented.

    Args:
        found: The findings.
        settings: The lines of the suggested settings; empty if there are none.
    """
    values = {
        **_attributes(found),
        "capabilities": _plain(found.capabilities),
        "capabilities_inside_tls": _plain(found.inside),
        "offers_pipelining": found.offers_pipelining,
        "offers_xclient": found.offers_xclient,
        "loses_groups": found.loses_groups,
        "settings": "\n".join([*settings, ""]) if settings else None,
    }
    return json.dumps(values, indent=2)


def _attributes(value: object) -> dict[str, object]:
    assert is_dataclass(value)
    return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}


@singledispatch
def _plain(value: object) -> object:
    """Return a value as JSON has it."""
    return _attributes(value) if is_dataclass(value) else value


@_plain.register
def _(reply: ProbeReply) -> object:
    lines = [printable(line[4:]) for line in reply.octets.splitlines()]
    return {"code": reply.code, "text": lines, "seconds": round(reply.seconds, 6)}


@_plain.register
def _(group: GroupResult) -> object:
    return {**_attributes(group), "commands": group.verbs}


@_plain.register
def _(tls: TlsFindings) -> object:
    found = _attributes(tls)
    del found["backend"]  # the settings have it
    return found


@_plain.register
def _(value: Enum) -> object:
    return value.value


@_plain.register
def _(value: Address) -> object:
    return str(value)


@_plain.register
def _(value: datetime) -> object:
    return value.isoformat()


@_plain.register(str)
@_plain.register(bytes)
def _(value: str | bytes) -> object:
    return printable(value)


@_plain.register(list)
@_plain.register(tuple)
def _(value: Sequence[object]) -> object:
    return list(map(_plain, value))


@_plain.register
def _(value: dict) -> object:  # type: ignore[type-arg]  # singledispatch takes the bare class
    return {str(key): _plain(each) for key, each in value.items()}


@_plain.register
def _(value: float) -> object:
    return round(value, 6)
