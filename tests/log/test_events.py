"""The catalogue of log events: nothing is logged that it does not have, and it has nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import smtpproxy
from smtpproxy.core.observer import NotedEvent
from smtpproxy.log import events
from smtpproxy.log.events import EVENTS, FIELDS, Event
from smtpproxy.log.transaction_summary import Outcome

PACKAGE = Path(smtpproxy.__file__).parent
LOG_METHODS = {"debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log"}
CATALOGUE = {name: each for name, each in vars(events).items() if isinstance(each, Event)}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield each call in the program, and the file that it is in."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(PACKAGE)), node


def event_of(node: ast.AST) -> Event | None:
    """Return the event that an expression names, with or without its module."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return CATALOGUE.get(name)


def logged() -> Iterator[tuple[Event, ast.Call]]:
    """Yield each call that logs an event that it names."""
    for _, call in calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr == "log":
            event = event_of(call.func.value)
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "_emit":
            event = event_of(call.args[0])
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "noted":
            event = EVENTS[call.args[0].value] if isinstance(call.args[0], ast.Constant) else None
        else:
            continue
        if event is not None:
            yield event, call


def test_nothing_is_logged_but_by_an_event_of_the_catalogue() -> None:
    """A logger's own methods are called in the two files that the catalogue is part of."""
    by_hand = {
        f"{file}:{call.lineno}"
        for file, call in calls()
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LOG_METHODS
        and (call.args or call.keywords)  # a task has `exception()`
        and file != "log/log.py"
        and not (call.func.attr == "log" and _may_be_an_event(call.func.value))
    }
    assert by_hand == set()


def _may_be_an_event(value: ast.expr) -> bool:
    return event_of(value) is not None or (isinstance(value, ast.Name) and value.id == "event")


def test_the_fields_in_the_source_are_those_of_the_event() -> None:
    """Those that are not written out are found in lines: see tests/support/catalogue.py."""
    pairs = list(logged())
    assert len(pairs) > 25
    for event, call in pairs:
        given = {each.arg for each in call.keywords if each.arg} - {"exc_info", "details"}
        assert given <= set(event.fields), event.name


def test_names_that_become_events_are_in_the_catalogue() -> None:
    """mypy lets sessions use no others, so that looking one up cannot fail."""
    noted = [
        call.args[0].value
        for _, call in calls()
        if isinstance(call.func, ast.Attribute) and call.func.attr == "noted"
        if isinstance(call.args[0], ast.Constant)
    ]
    assert set(noted) == set(get_args(NotedEvent))
    for name in (*get_args(NotedEvent), *get_args(Outcome)):
        assert EVENTS[name].fields[: len(events.SESSION)] == events.SESSION


def test_each_event_is_logged_somewhere() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "events.py"]
    sources = "".join(path.read_text() for path in files)
    for constant, event in CATALOGUE.items():
        assert re.search(rf'\b{constant}\b|"{event.name}"', sources), event.name


def test_each_field_has_a_meaning_and_each_meaning_a_field() -> None:
    assert {name for each in EVENTS.values() for name in each.fields} == FIELDS.keys()
    assert FIELDS.keys() >= events.OPTIONAL


def test_an_event_of_a_session_names_both_ends() -> None:
    for event in EVENTS.values():
        if "session" in event.fields:
            assert event.fields[: len(events.SESSION)] == events.SESSION


def test_units_are_in_the_names() -> None:
    for name, field in FIELDS.items():
        assert not name.endswith(("_seconds", "_octets", "_ms"))
        if "number" in field.types:
            assert name.endswith("_s"), name
