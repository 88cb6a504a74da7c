"""`smtpproxy status`: shows the running service, and all replicas of its cluster, as a table."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from rich.text import Text

from smtpproxy.control_socket import control_client, locations
from smtpproxy.control_socket.service_status import (
    PATH,
    BackendStatus,
    InstanceStatus,
    ServiceStatus,
)
from smtpproxy.text.console import fail, say
from smtpproxy.text.fitting_table import Column, print_table

NOT_WELL = 3
"""The exit code if the service answers and something is wrong."""
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_COLUMNS = (
    Column("instance", 9, folds=True),
    Column("version", 2),
    Column("state", 5, folds=True),
    Column("up", 1, is_number=True),
    Column("sessions", 8, is_number=True),
    Column("backend", 7, folds=True),
    Column("slots", 6, is_number=True),
    Column("waiting", 3, is_number=True),
    Column("servers up", 4, is_number=True),
    Column("store", 0),
)
Row = list[str | Text]


@click.command(
    short_help="Show the running service, and the replicas of its cluster.",
    epilog="""
    \b
    Examples:
      smtpproxy status
      smtpproxy status --json | jq '.instances[].sessions'
      smtpproxy status >/dev/null || echo "look at smtpproxy"

    \b
    The columns:
      up          since the start, or the last upgrade
      slots       connections to the backend, of its max_connections
      waiting     clients that wait for a connection
      servers up  of all servers of the backend
      store       of the cluster; away: no answer, so each replica uses its share

    A narrow terminal shows fewer columns.  What is wrong follows the table, a line each.
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
@locations.control_option
def status(*, as_json: bool, control: Path | None) -> None:
    """Show the service on this machine: version, sessions, connection slots, servers, store.

    With [cluster], also all replicas that share its name.  Exits 0 if all is well; 3 if something
    is wrong, such as a server that is down or a replica that is not heard; 1 if no service answers.
    """
    socket_paths = [control] if control else locations.of_commands(os.environ)
    try:
        code, text = control_client.ask(PATH, socket_paths)
    except control_client.NoAnswer as error:
        fail(str(error))
    if code == 404:
        fail("the service is an older version without a status")
    try:
        found = msgspec.json.decode(text, type=ServiceStatus)
    except msgspec.MsgspecError:
        fail("the service is another version of smtpproxy: reload it")
    if as_json:
        for line in json.dumps(json.loads(text), indent=2).splitlines():
            say(line)
    else:
        print_table(_COLUMNS, list(_rows(found)))
        if found.problems:
            say("")
        for problem in found.problems:
            say(problem)
    sys.exit(NOT_WELL if found.problems else 0)


def _rows(status: ServiceStatus) -> Iterator[Row]:
    for instance in status.instances:
        backends = instance.backends or [BackendStatus("")]
        for number, backend in enumerate(backends):
            begin = _of_instance(instance) if number == 0 else [""] * 5
            store = instance.store if number == 0 else ""
            yield [*begin, *_of_backend(backend), _servers(backend), _marked(store, "away")]
    if len(status.instances) > 1:
        yield from _totals(status.instances)


def _of_instance(instance: InstanceStatus) -> Row:
    state = instance.state
    return [
        instance.instance,
        instance.version,
        Text(state, "" if state == "serving" else "yellow"),
        _duration(instance.uptime_s) if instance.uptime_s else "",
        str(instance.sessions),
    ]


def _of_backend(backend: BackendStatus) -> Row:
    """Return the name of a backend, its slots, and how many clients wait for one."""
    most = backend.max_connections
    if not most:
        return [backend.name, "", ""]
    style = "yellow" if backend.waiting else ""
    return [backend.name, f"{backend.connections}/{most}", Text(str(backend.waiting), style)]


def _servers(backend: BackendStatus) -> str | Text:
    down = len(backend.servers_down)
    text = f"{backend.servers - down}/{backend.servers}" if backend.servers else ""
    return Text(text, "red" if down else "")


def _marked(text: str, bad: str) -> Text:
    return Text(text, "red" if text == bad else "")


def _totals(instances: list[InstanceStatus]) -> Iterator[Row]:
    """Yield the sums over all instances: of sessions, and of the slots of each backend."""
    sums: dict[str, BackendStatus] = {}
    limited = (each for instance in instances for each in instance.backends if each.max_connections)
    for backend in limited:
        sums.setdefault(backend.name, BackendStatus(backend.name)).add(backend)
    sessions = str(sum(each.sessions for each in instances))
    for number, total in enumerate(sums.values() or [BackendStatus("")]):
        begin: Row = ["all", "", "", "", sessions] if number == 0 else [""] * 5
        yield [*begin, *_of_backend(total), "", ""]


def _duration(seconds: float) -> str:
    """Return a duration in its largest unit: `3 d`, `2 h`, `5 min`, `7 s`."""
    unit, size = next((each for each in _UNITS if seconds >= each[1]), _UNITS[-1])
    return f"{seconds // size:.0f} {unit}"
