"""`smtpproxy status`: what it shows of each answer, and its exit code."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from smtpproxy import cli
from smtpproxy.control_socket.service_status import (
    BackendStatus,
    InstanceStatus,
    ServiceStatus,
)
from tests.support.control_service import control_service

ONE = ServiceStatus(
    [
        InstanceStatus(
            "mx1",
            "1.0.0",
            "serving",
            uptime_s=7200.5,
            workers=2,
            sessions=120,
            backends=[BackendStatus("old-mta", 12, 40, 3, servers=2), BackendStatus("new")],
        )
    ]
)
TWO = ServiceStatus(
    [
        InstanceStatus(
            "mx1",
            "1.0.0",
            "serving",
            uptime_s=300000,
            sessions=120,
            backends=[BackendStatus("old-mta", 12, 40, 3, servers=2), BackendStatus("new")],
            store="up",
        ),
        InstanceStatus(
            "mx2",
            "1.0.1",
            "draining",
            uptime_s=59.9,
            sessions=80,
            backends=[BackendStatus("old-mta", 20, 40, 0, servers=2, servers_down=["10.0.0.6:25"])],
            store="up",
            age_s=1.5,
        ),
    ],
    cluster="mail",
    replicas=2,
    problems=["mx2: draining", "mx2: server 10.0.0.6:25 of old-mta is down"],
)
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return what runs the command against a service that gives an answer."""

    def run_it(answer: bytes | ServiceStatus, *options: str, columns: int = 120) -> Result:
        if not isinstance(answer, bytes):
            answer = b"HTTP/1.0 200 OK\r\n\r\n" + msgspec.json.encode(answer) + b"\n"
        path = tmp_path / "control.sock"
        with control_service(path, answer) as asked:
            result = CliRunner().invoke(
                cli.main,
                ["status", "--control", str(path), *options],
                env={"COLUMNS": str(columns)},
            )
        path.unlink()
        assert asked == [b"GET /status HTTP/1.0\r\n\r\n"]
        return result

    return run_it


def shown(result: Result) -> list[str]:
    return [line.rstrip() for line in result.stdout.splitlines()]


def test_one_instance(run: Run) -> None:
    result = run(ONE)
    assert (result.exit_code, result.stderr) == (0, "")
    assert shown(result) == [
        "instance  version  state     up  sessions  backend  slots  waiting  servers up",
        "mx1       1.0.0    serving  2 h       120  old-mta  12/40        3         2/2",
        "                                           new",
    ]


def test_replicas_with_their_sums_and_what_is_wrong(run: Run) -> None:
    result = run(TWO)
    assert (result.exit_code, result.stderr) == (3, "")
    assert shown(result) == [
        "instance  version  state       up  sessions  backend  slots  waiting  servers up  store",
        "mx1       1.0.0    serving    3 d       120  old-mta  12/40        3         2/2  up",
        "                                             new",
        "mx2       1.0.1    draining  59 s        80  old-mta  20/40        0         1/2  up",
        "all                                     200  old-mta  32/40        3",
        "",
        "mx2: draining",
        "mx2: server 10.0.0.6:25 of old-mta is down",
    ]


@pytest.mark.parametrize(
    ("columns", "head"),
    [
        (80, "instance version state up sessions backend slots waiting servers up"),
        (60, "instance state sessions backend slots servers up"),
        (40, "instance sessions backend slots"),
        (28, "instance sessions backend"),
        (20, "instance sessions"),
        (10, "instance"),
        (2, "in"),
    ],
)
def test_a_narrow_terminal_shows_the_most_important_columns(
    run: Run, columns: int, head: str
) -> None:
    lines = shown(run(TWO, columns=columns))
    assert " ".join(lines[0].split()) == head
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= columns
    assert len(table) == (5 if "backend" in head else 4) or columns < 8


def test_a_long_name_goes_on_in_the_next_line(run: Run) -> None:
    name = "smtpproxy-7d9f8b6c5d-x2v7p-" + "x" * 37
    status = ServiceStatus([InstanceStatus(name, "1.0.0", "serving")])
    lines = shown(run(status, columns=60))
    assert "".join(line.split(" ")[0] for line in lines[1:]) == name


def test_the_answer_as_json(run: Run) -> None:
    result = run(TWO, "--json")
    assert result.exit_code == 3
    printed = json.loads(result.stdout)
    assert msgspec.convert(printed, ServiceStatus) == TWO
    assert result.stdout.startswith('{\n  "instances": [\n')


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.0 404 Not Found\r\n\r\nnot found\n", "is an older version without a status"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}\n", "is another version of smtpproxy: reload it"),
        (b"HTTP/1.0 200 OK\r\n\r\nok\n", "is another version of smtpproxy: reload it"),
        (b"220 mx\r\n", "is not smtpproxy"),
    ],
)
def test_no_status_is_an_error(run: Run, answer: bytes, why: str) -> None:
    result = run(answer)
    assert (result.exit_code, result.stdout) == (1, "")
    assert why in result.stderr


def test_no_service_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, ["status", "--control", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert result.stderr == f"smtpproxy: no service answers at {tmp_path}/x\n"
